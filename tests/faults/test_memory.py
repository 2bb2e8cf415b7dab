"""A run's memory of its images: what it was trained on is never tested, and what is measured is the run's test set."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cnnlab, Result, processes, run_process, write_photos

TINY = Path(__file__).parents[1] / "conf/image_folder.yaml"
FAST = (
    *("--callbacks.unfreezing", "false", "--callbacks.gradcam", "false"),
    *("--trainer.max_epochs", "1", "--data.size", "16"),
)
pytestmark = pytest.mark.filterwarnings("default")


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def splits(run: Path) -> dict[str, str]:
    """Each image's split in a run's manifest."""
    return {row["path"]: row["split"] for row in table(run / "manifest.csv")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the undivided photographs p (20 of each of three classes) and a run R of them."""
    folder = tmp_path_factory.mktemp("trained")
    write_photos(folder / "p", {"": 20})
    done = run_process("fit", "--config", TINY, "--data.root", "p", "--run", "R", *FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def predicted(run: Path, name: str = "") -> set[str]:
    """The predicted images, as class and file name."""
    rows = table(run / (f"results/{name}" if name else "") / "predictions.csv")
    return {"/".join(Path(row["path"]).parts[-2:]) for row in rows}


def of_split(run: Path, split: str) -> set[str]:
    """The images of a split in a run's manifest."""
    return {name for name, own in splits(run).items() if own == split}


def ok(result: Result) -> Result:
    """The result of a command that has to succeed."""
    assert result.code == 0, result.err
    return result


@pytest.mark.parametrize("where", ["with a slash", "one more file", "a copy", "a link", "another working folder"])
def test_another_place_or_one_more_file_divides_nothing_anew(
    cnnlab: Cnnlab, place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Splits were made anew, and images were tested that had been trained on (aiqm/torchani#443)."""
    before = (place / "R/manifest.csv").read_bytes()
    root = "p"
    if where == "with a slash":
        root = f"{place}/p/"
    elif where == "one more file":
        Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(place / "p/along/0.png")
    elif where == "a copy":
        root = str(shutil.copytree(place / "p", place / "elsewhere/copy"))
    elif where == "a link":
        (place / "link").symlink_to("p")
        root = "link"
    else:
        (place / "deeper").mkdir()
        monkeypatch.chdir(place / "deeper")
        root = "../p"
    ok(cnnlab("predict", str(place / "R"), "--data.root", root))
    name = "" if (place / "R/predictions.csv").is_file() else Path(root).name
    assert predicted(place / "R", name) == of_split(place / "R", "test")
    ok(cnnlab("resume", str(place / "R"), "--data.root", root, "--trainer.max_epochs", "2"))
    assert (place / "R/manifest.csv").read_bytes() == before


def test_a_run_that_goes_on_with_a_copy_is_the_same_run(cnnlab: Cnnlab, place: Path) -> None:
    """Renamed files stand at another place in the list, and changed the order of training."""
    import torch

    shutil.copytree(place / "p", place / "q")
    (place / "q/along/03.jpg").rename(place / "q/along/zz.jpg")
    shutil.copytree(place / "R", place / "S")
    ok(cnnlab("resume", "R", "--trainer.max_epochs", "2"))
    ok(cnnlab("resume", "S", "--trainer.max_epochs", "2", "--data.root", "q"))
    one, other = (torch.load(place / run / "checkpoints/last.ckpt")["state_dict"] for run in ("R", "S"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_moved_and_renamed_files_keep_their_split(cnnlab: Cnnlab, place: Path) -> None:
    moved = sorted(of_split(place / "R", "test"))[0]
    trained = sorted(of_split(place / "R", "train"))[0]
    (place / "p" / moved).rename(place / "p" / moved.replace(".jpg", "-renamed.jpg"))
    (place / "p" / trained).rename(place / "p" / trained.replace(".jpg", "-renamed.jpg"))
    with pytest.warns(UserWarning, match=rf"2 images have moved, .*: {trained} is \S+-renamed\.jpg"):
        ok(cnnlab("predict", "R"))
    assert predicted(place / "R") == of_split(place / "R", "test") - {moved} | {moved.replace(".jpg", "-renamed.jpg")}


@pytest.mark.parametrize(("command", "split"), [("test", "test"), ("validate", "val"), ("resume", "train")])
def test_images_that_are_gone_are_counted_and_named(cnnlab: Cnnlab, place: Path, command: str, split: str) -> None:
    """Six of nine test images were deleted, three were measured, and nothing was said."""
    before = (place / "R/manifest.csv").read_bytes()
    gone = sorted(of_split(place / "R", split))[:6]
    for name in gone:
        (place / "p" / name).unlink()
    more = ("--trainer.max_epochs", "2") if command == "resume" else ()
    refused = cnnlab(command, "R", *more)
    assert refused.code == 2
    assert "6 of the run's" in refused.err
    assert f"{', '.join(gone[:5])} and 1 more" in refused.err
    assert "--data.on_error skip" in refused.err
    with pytest.warns(UserWarning, match="6 of the run's .* are left out"):
        ok(cnnlab(command, "R", "--data.on_error", "skip", *more))
    assert (place / "R/manifest.csv").read_bytes() == before


def test_a_check_of_a_run_says_what_is_gone(cnnlab: Cnnlab, place: Path) -> None:
    gone = sorted(of_split(place / "R", "test"))[0]
    (place / "p" / gone).unlink()
    with pytest.warns(UserWarning, match=rf"1 of the run's .* are left out: {gone}"):
        ok(cnnlab("data", "check", "R"))


def test_files_of_a_table_that_are_gone_are_counted(cnnlab: Cnnlab, place: Path) -> None:
    names = sorted(str(path.relative_to(place / "p")) for path in (place / "p").rglob("*.jpg"))
    write_table(place, [(name, name.split("/")[0], "", "") for name in names])
    ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--data.csv", "t.csv", "--run", "T", *FAST))
    for name in sorted(of_split(place / "T", "test"))[:2]:
        (place / "p" / name).unlink()
    refused = cnnlab("test", "T")
    assert refused.code == 2
    assert "2 of the run's" in refused.err
    with pytest.warns(UserWarning, match="2 of the run's .* are left out") as said:
        ok(cnnlab("test", "T", "--data.on_error", "skip"))
    assert not any("are not the run's" in str(one.message) for one in said)


@pytest.mark.parametrize("names", ["the same names", "other names"])
def test_a_labeled_set_that_the_run_has_not_seen_is_tested_whole(cnnlab: Cnnlab, place: Path, names: str) -> None:
    """It was divided again, and 9 of its 60 images were tested."""
    write_photos(place / "new", {"": 20}, size=(44, 52))
    if names == "other names":
        for path in (place / "new").rglob("*.jpg"):
            path.rename(path.with_name(f"new-{path.name}"))
    ok(cnnlab("test", "R", "--data.root", "new"))
    ok(cnnlab("predict", "R", "--data.root", "new"))
    assert len(table(place / "R/results/new/predictions.csv")) == 60
    scores = json.loads((place / "R/results/new/test.json").read_text())
    right = sum(row["name"] == Path(row["path"]).parent.name for row in table(place / "R/results/new/predictions.csv"))
    assert scores["test/accuracy"] == pytest.approx(right / 60)


def test_images_of_the_training_are_not_tested_in_another_set(
    cnnlab: Cnnlab, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(place / "new", {"": 20}, size=(44, 52))
    seen = sorted(of_split(place / "R", "train"))[0]
    shutil.copy(place / "p" / seen, place / "new/along/copy.jpg")
    ok(cnnlab("test", "R", "--data.root", "new"))
    assert "1 that the run has seen are left out: along/copy.jpg" in caplog.text
    ok(cnnlab("predict", "R", "--data.root", "new"))
    assert len(table(place / "R/results/new/predictions.csv")) == 60


def test_replaced_contents_and_other_classes_are_said(cnnlab: Cnnlab, place: Path) -> None:
    """Contents were replaced and class folders swapped between fit and test, without a word."""
    name = sorted(of_split(place / "R", "train"))[0]
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(place / "p" / name)
    with pytest.warns(UserWarning, match=rf"1 images are not what they were when the run began: {name}"):
        ok(cnnlab("test", "R"))
    (place / "p/spots").rename(place / "p/x")
    (place / "p/along").rename(place / "p/spots")
    (place / "p/x").rename(place / "p/along")
    with pytest.warns(UserWarning, match=r"\d+ images have other targets than in the run: \S+ \(along, now spots\)"):
        ok(cnnlab("test", "R"))


def test_contents_replaced_by_others_of_the_same_size_are_said(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Of so many files only some are read before training, so the epoch itself has to notice."""
    for i in range(120):
        pixels = np.random.default_rng(i).integers(0, 255, (6, 6), np.uint8)
        path = tmp_path / f"p/{'ab'[i % 2]}/{i:03}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--run", "R", *FAST))
    name = sorted(of_split(tmp_path / "R", "train"))[1]
    content = (tmp_path / "p" / name).read_bytes()
    (tmp_path / "p" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    with pytest.warns(UserWarning, match=rf"1 images are not what they were when the run began: {name}"):
        ok(cnnlab("resume", "R", "--trainer.max_epochs", "2"))


def test_two_processes_write_the_manifest_of_one(cnnlab: Cnnlab, place: Path) -> None:
    done = run_process("fit", "--config", TINY, "--data.root", "p", "--run", "D", *FAST, *processes(2), cwd=place)
    assert done.returncode == 0, done.stderr
    assert table(place / "D/manifest.csv") == table(place / "R/manifest.csv")
    assert all(len(row["sha256"]) == 64 for row in table(place / "D/manifest.csv"))


def test_a_removed_file_moves_no_other(cnnlab: Cnnlab, place: Path) -> None:
    """Without the one broken file of 149, 40 others stood in other splits."""
    before = splits(place / "R")
    for name in ("along/07.jpg", "spots/11.jpg"):
        (place / "p" / name).unlink()
        del before[name]
    ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--run", "S", *FAST))
    assert splits(place / "S") == before
    shares = [list(before.values()).count(split) for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7 * 58, 0.15 * 58, 0.15 * 58], abs=2)


def test_folds_stay_as_they_are_without_a_file(cnnlab: Cnnlab, place: Path) -> None:
    """One file more or less divided all folds anew, so that results of a cross-validation could not be compared."""
    images = sorted((place / "p").rglob("*.jpg"))
    gone = images[3], images[-2]

    def validated(fold: int) -> set[str]:
        shutil.rmtree(place / "F", ignore_errors=True)
        folds = ("--data.folds", "4", "--data.fold", str(fold))
        ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--run", "F", *folds, *FAST))
        return of_split(place / "F", "val")

    before = [validated(fold) for fold in range(4)]
    test = of_split(place / "F", "test")
    assert sorted(set.union(*before) | test) == [str(path.relative_to(place / "p")) for path in images]
    for names in before:
        counts = [sum(name.startswith(kind) for name in names) for kind in ("across", "along", "spots")]
        assert all(3 <= count <= 6 for count in counts)
    for path in gone:
        path.unlink()
    for fold in (0, 2):
        assert validated(fold) == before[fold] - {str(path.relative_to(place / "p")) for path in gone}


def write_table(place: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Write t.csv with path, label, split and group."""
    with (place / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])


def test_a_group_follows_the_split_that_one_of_its_rows_has(cnnlab: Cnnlab, place: Path) -> None:
    """Only one row of each group had a split, and every group stood in two (pycaret/pycaret#2259)."""
    names = sorted(str(path.relative_to(place / "p")) for path in (place / "p").rglob("*.jpg"))
    rows = [
        (name, name.split("/")[0], "test" if i % 20 == 0 and i % 12 == 0 else "", f"g{i % 20 // 4}")
        for i, name in enumerate(names)
    ]
    write_table(place, rows)
    ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--data.csv", "t.csv", "--run", "T", *FAST))
    of_group: dict[str, set[str]] = {}
    for row in table(place / "T/manifest.csv"):
        of_group.setdefault(row["group"], set()).add(row["split"])
    assert {frozenset(found) for found in of_group.values()} <= {frozenset({s}) for s in ("train", "val", "test")}
    assert of_group["g0"] == {"test"}
    rows[1] = (*rows[1][:2], "val", "g0")
    write_table(place, rows)
    refused = cnnlab("fit", "--config", TINY, "--data.root", "p", "--data.csv", "t.csv", "--run", "U", *FAST)
    assert refused.code == 2
    assert "group 'g0' is in two splits" in refused.err


def test_too_few_groups_are_called_groups(cnnlab: Cnnlab, place: Path) -> None:
    names = sorted(str(path.relative_to(place / "p")) for path in (place / "p").rglob("*.jpg"))
    write_table(place, [(name, name.split("/")[0], "", f"g{i % 2}") for i, name in enumerate(names)])
    refused = cnnlab("fit", "--config", TINY, "--data.root", "p", "--data.csv", "t.csv", "--run", "U", *FAST)
    assert refused.code == 2
    assert "60 images in 2 groups leave none for" in refused.err
    assert "give more groups" in refused.err


@pytest.mark.parametrize("other", ["./{}", "along/../{}", "{}", "/absolute/{}"])
def test_a_path_in_two_spellings_is_one_image(cnnlab: Cnnlab, place: Path, other: str) -> None:
    name = "spots/01.jpg"
    again = other.format(name).replace("/absolute", str(place / "p"))
    write_table(place, [(name, "spots", "train", ""), (again, "spots", "test", "")])
    refused = cnnlab("fit", "--config", TINY, "--data.root", "p", "--data.csv", "t.csv", "--run", "U", *FAST)
    assert refused.code == 2
    assert "t.csv, lines 2 and 3: both are of" in refused.err
    assert "spots/01.jpg" in refused.err


@pytest.mark.parametrize("split", ["val", "test"])
def test_copies_in_several_splits_are_said_by_fit(cnnlab: Cnnlab, tmp_path: Path, split: str) -> None:
    """Only data check knew of duplicates; of those in the test split, fit knew nothing."""
    write_photos(tmp_path / "p", {"train": 8, "val": 4, "test": 4})
    shutil.copy(tmp_path / "p/train/along/02.jpg", tmp_path / f"p/{split}/along/99.jpg")
    said = rf"1 images are in several splits.*(train/along/02\.jpg = {split}|{split}/along/99\.jpg = train)/along"
    with pytest.warns(UserWarning, match=said):
        ok(cnnlab("fit", "--config", TINY, "--data.root", "p", "--run", "R", *FAST))


VANISHING = """
from pathlib import Path
from lightning.pytorch import Callback

class Vanishing(Callback):
    def on_train_epoch_start(self, trainer, *args):
        if trainer.current_epoch == 1:
            Path("p/train/along/02.jpg").unlink(missing_ok=True)

class Replacing(Callback):
    def on_fit_start(self, *args):
        Path("p/train/along/03.jpg").write_bytes(Path("p/train/along/04.jpg").read_bytes())
    def on_train_epoch_start(self, trainer, *args):
        if trainer.current_epoch == 1:
            Path("p/train/along/02.jpg").write_bytes(Path("p/train/spots/02.jpg").read_bytes())
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_vanishes_while_training_is_named_or_left_out(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    (tmp_path / "vanishing.py").write_text(VANISHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("--trainer.callbacks", "vanishing.Vanishing", "--data.num_workers", workers, *FAST)
    for name, more in (("R", ()), ("S", ("--data.on_error", "skip"))):
        write_photos(tmp_path / "p", {"train": 8, "val": 4, "test": 4})
        done = cnnlab(
            *("fit", "--config", TINY, "--data.root", "p", "--run", name, *options, "--trainer.max_epochs", "3", *more)
        )
        if name == "R":
            assert done.code == 2
            assert "p/train/along/02.jpg: there is no such file" in done.err
        else:
            ok(done)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_is_replaced_while_training_is_named_or_left_out(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """It was trained on under the old one's hash, beside the size of neither; only the next resume said so."""
    (tmp_path / "vanishing.py").write_text(VANISHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("--trainer.callbacks", "vanishing.Replacing", "--data.num_workers", workers, *FAST)
    for name, more in (("R", ()), ("S", ("--data.on_error", "skip"))):
        write_photos(tmp_path / "p", {"train": 8, "val": 4, "test": 4})
        first = (tmp_path / "p/train/along/02.jpg").read_bytes()
        done = cnnlab(
            *("fit", "--config", TINY, "--data.root", "p", "--run", name, *options, "--trainer.max_epochs", "3", *more)
        )
        if name == "R":
            assert done.code == 2
            assert "p/train/along/02.jpg: is another file than the one that this training has read before" in done.err
            continue
        ok(done)
        rows = {row["path"]: row for row in table(tmp_path / "S/manifest.csv")}
        # Both numbers are of what was read: the first file, and the one that replaced another before the first reading.
        for path, content in (
            ("train/along/02.jpg", first),
            ("train/along/03.jpg", (tmp_path / "p/train/along/04.jpg").read_bytes()),
        ):
            own = rows[path]["bytes"], rows[path]["sha256"]
            assert own == (str(len(content)), hashlib.sha256(content).hexdigest())
