"""W&B without network, and TensorBoard."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from lightning import LightningModule
from PIL import Image
from wandb.sdk.mailbox.mailbox import MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError

from cnnlab import recipes
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage
from cnnlab.loggers import Wandb, dashboard
from cnnlab.loggers.dashboard import create_dashboard
from cnnlab.tasks import Classification, Segmentation, VisionTask
from tests.conftest import TINY, Cnnlab, run_process, start_process
from tests.data.objects.pictures import write_objects

FLAGS = ("--config", "logger/wandb", "--callbacks.throughput", "false", "--callbacks.gradcam", "false")
History = dict[int, dict[str, float]]
"""Logged values by step."""


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, and a home directory that shows what is written into it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()
    assert not [path for path in home.rglob("*") if "wandb" in str(path.relative_to(home))]


def records(piece: Path) -> list[dict[str, Any]]:
    """Read a piece with W&B's own program."""
    inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(piece)]
    done = subprocess.run(inspect, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def pieces(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*"))


def history(piece: Path) -> History:
    found: History = {}
    for record in records(piece):
        if record["type"] == "history":
            item = record["history"]["item"]
            numbers = {name: value for name, value in item.items() if isinstance(value, int | float)}
            found[item["_step"]] = {name: value for name, value in numbers.items() if not name.startswith(("_", "lr-"))}
    return found


def identity(piece: Path) -> str:
    (run,) = [record["run"] for record in records(piece) if record["type"] == "run"][:1]
    return str(run["run_id"])


def logged(run: Path) -> History:
    """The values of metrics.csv, by step."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): {
            name: float(value) for name, value in row.items() if value and name != "step" and not name.startswith("lr-")
        }
        for row in rows
    }


def holds(found: History, expected: History) -> bool:
    """Whether each step of metrics.csv is there, with its values."""
    return all(
        found.get(step, {}).get(name) == pytest.approx(value, rel=1e-6)
        for step, row in expected.items()
        for name, value in row.items()
    )


def test_a_run_without_a_key_is_kept_whole_in_its_folder(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    done = fit(*FLAGS)
    assert done.code == 0, done.err
    run = tmp_path / "R"
    (piece,) = pieces(run)
    assert holds(history(piece), logged(run))
    assert not (tmp_path / "wandb").exists()
    # The resolved configuration, once, and as a file.
    updates = [record["run"]["config"] for record in records(piece) if record["type"] == "run"]
    updates += [record["config"] for record in records(piece) if record["type"] == "config"]
    assert sum("network" in json.dumps(update) for update in updates) == 1
    assert (piece / "files/config.yaml").read_text() == (run / "config.yaml").read_text()
    media = {path.parent.name + "/" + path.name for path in (piece / "files/media").rglob("*") if path.is_file()}
    assert any("errors" in name for name in media)
    assert any("confusion_matrix" in name for name in media)
    assert any(name.endswith("table.json") for name in media)

    tested = cnnlab("test", "R")
    assert tested.code == 0, tested.err
    first, second = pieces(run)
    assert identity(first) == identity(second) == json.loads((run / "wandb.json").read_text())["id"]
    # The last piece is whole, since it may be all that W&B keeps.
    assert holds(history(second), logged(run))
    accuracy = json.loads((run / "test.json").read_text())["test/accuracy"]
    assert [row["test/accuracy"] for row in history(second).values() if "test/accuracy" in row] == [accuracy]
    assert (second / "files/config.yaml").read_text() == (run / "config.yaml").read_text()
    pictured = {
        path.name.rpartition("_")[0].rpartition("_")[0] for path in (second / "files/media/images").rglob("*.png")
    }
    assert {"errors", "confusion_matrix"} <= pictured
    items = [record["history"]["item"] for record in records(second) if record["type"] == "history"]
    kept = {name.partition(".")[0] for item in items for name in item}
    assert {"test/errors", "test/hardest", "test/classes", "test/confusion_matrix", "val/errors"} <= kept
    tables = {f"{path.parent.name}/{path.name.partition('_')[0]}" for path in run.rglob("media/table/*/*.json")}
    # What the dashboard shows is what runs log.
    assert tables == set(dashboard._TABLES)
    # What only writes files begins no piece, which would replace the others.
    for name in ("validate", "predict"):
        assert cnnlab(name, "R").code == 0
    assert len(pieces(run)) == 2


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_one_run(tmp_path: Path, mnist_root: Path) -> None:
    """Users met a W&B run for each process (Lightning#11380), and resumed offline runs that kept their last piece only.

    The latter are wandb/wandb#2423 and #4624.
    """
    devices = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "4")
    flags = (*FLAGS, *devices, "--data.batch_size", "8", "--callbacks.last.every_n_steps", "3")
    run = tmp_path / "R"
    fit = ("fit", "--config", TINY, "--data.root", mnist_root, "--run", "R")
    process = start_process(*fit, *flags, cwd=tmp_path, session=True)
    deadline = time.monotonic() + 120

    def has_twenty_rows() -> bool:
        try:
            return (run / "metrics.csv").is_file() and len(logged(run)) >= 20
        except ValueError:
            # A row that is being written.
            return False

    while not has_twenty_rows():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.finish()
    before = logged(run)
    before.pop(max(before))  # The kill may have cut it short.
    time.sleep(2)  # What W&B's own process still writes.
    resumed = run_process("resume", "R", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    found = [history(piece) for piece in pieces(run) if next(piece.glob("*.wandb")).stat().st_size > 7]
    assert len({piece.name.rpartition("-")[2] for piece in pieces(run)}) == 1
    whole = logged(run)
    assert len(whole) == 64
    assert holds(found[-1], whole)
    # What was repeated after the last checkpoint agrees with what the killed one has written.
    for step in set(before) & set(whole):
        assert before[step] == whole[step]
    for earlier in found[:-1]:
        assert all(found[-1][step].items() >= row.items() for step, row in earlier.items())


def test_a_run_is_rebuilt_from_its_metrics(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit().code == 0
    run = tmp_path / "R"
    refused = cnnlab("sync", "R")
    assert refused.code == 2
    assert "has logged nothing for W&B" in refused.err
    done = cnnlab("sync", "R", "--replay", "true")
    assert done.code == 0, done.err
    (piece,) = pieces(run)
    assert str(piece) in done.out
    assert holds(history(piece), logged(run))
    assert list((piece / "files/media/images/val").glob("gradcam*.png"))
    without_key = cnnlab("sync", "R")
    assert without_key.code == 2
    assert "wandb login" in without_key.err


def test_the_folder_is_found_wherever_wandb_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name / "R").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        logger = Wandb()
        logger.attach(Path("R"))
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        (piece,) = pieces(tmp_path / name / "R")
        assert history(piece)[0]["loss"] == 1


def test_pictures_end_with_their_budget(tmp_path: Path) -> None:
    """Users met home folders full of W&B's pictures and artifacts (wandb/wandb#1383, #6360, #7066)."""
    pictures = [tmp_path / f"{number}.png" for number in range(4)]
    for picture in pictures:
        Image.effect_noise((200, 200), 80).save(picture)
    (tmp_path / "R").mkdir()
    logger = Wandb(media_budget=0.05)
    logger.attach(tmp_path / "R")
    for step in range(2):
        logger.log_image("a", [str(pictures[step])], step)
    with pytest.warns(UserWarning, match=r"reach media_budget; b and later ones are left out"):
        logger.log_image("b", [str(pictures[2])], 2)
    logger.log_image("c", [str(pictures[3])], 3)
    logger.finalize("success")
    (piece,) = pieces(tmp_path / "R")
    kept = [path.name[0] for path in (piece / "files/media").rglob("*.png")]
    assert kept == ["a", "a"]


def test_checkpoints_are_not_kept_where_nothing_is_sent(fit: Cnnlab, tmp_path: Path) -> None:
    done = fit(*FLAGS, "--trainer.logger.log_model", "true")
    assert done.code == 2
    assert "log_model uploads checkpoints to W&B, and this run is offline" in done.err
    with pytest.raises(InputError, match="media_budget is -1"):
        Wandb(media_budget=-1)


@pytest.mark.parametrize("path", sorted((recipes.folder() / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_of_a_sweep_is_understood(cnnlab: Cnnlab, mnist_root: Path, photos: Path, path: Path) -> None:
    """Users met sweeps whose arguments LightningCLI refused (wandb/wandb#1059, lightning-hydra-template#531).

    W&B's own code makes the command here, with the first and the last value of each parameter.
    """
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"]["name"].startswith("val/")
    values = {}
    for name, parameter in sweep["parameters"].items():
        choices = parameter.get("values") or [parameter[key] for key in ("value", "min", "max") if key in parameter]
        values[name] = choices
    for choose in (0, -1):
        made = utils.create_sweep_command_args({"args": {name: {"value": v[choose]} for name, v in values.items()}})
        parts = [made[part[2:-1]] if part.startswith("${") else [part] for part in sweep["command"]]
        program, *arguments = [part for some in parts for part in some]
        assert program == "cnnlab"
        done = cnnlab(*arguments, "--print_config")
        assert done.code == 0, done.err
        printed = yaml.safe_load(done.out)
        assert printed["trainer"]["logger"]["class_path"] == "cnnlab.loggers.Wandb"
        for name, chosen in values.items():
            room, key = name.split(".")
            assert printed[room]["init_args"][key] == chosen[choose]


def test_an_agent_says_which_run_it_is(fit: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    assert fit(*FLAGS, "--trainer.max_epochs", "1").code == 0
    (piece,) = pieces(tmp_path / "R")
    assert identity(piece) == "abcd1234"


@pytest.mark.parametrize("task", [Classification, Segmentation])
def test_a_dashboard_shows_what_runs_log(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, task: type[VisionTask]) -> None:
    workspace = create_dashboard(task, "team", "cnnlab")
    view = workspace._to_model().model_dump()
    sections = view["spec"]["section"]["panel_bank_config"]["sections"]
    assert [section["name"] for section in sections] == ["Main figures", "Curves", "Pictures", "Tables"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    metrics = {name for panel in panels for name in panel.get("metrics") or []}
    segmentation = ("fit", "--config", TINY.with_name("segmentation.yaml"), "--run", "R")
    done = fit() if task is Classification else cnnlab(*segmentation)
    assert done.code == 0, done.err
    assert cnnlab("test", "R").code == 0
    names = {name for row in logged(tmp_path / "R").values() for name in row}
    names |= set(json.loads((tmp_path / "R/test.json").read_text()))
    assert metrics <= names
    pictures = {path.stem for path in (tmp_path / "R/pictures").glob("*.png")}
    shown = {key for panel in panels for key in panel.get("media_keys") or []}
    assert {"val/errors", "test/errors", "val/gradcam", "test/confusion_matrix"} <= shown
    files = {"val/predictions": "validation", "val/gradcam": "gradcam"}
    assert {files.get(key, key.replace("/", "_")) for key in shown} <= pictures


def test_a_dashboard_is_for_tasks_that_have_one() -> None:
    with pytest.raises(InputError, match="LightningModule has no charts, which say what a dashboard shows"):
        create_dashboard(LightningModule, "team", "cnnlab")


def test_tensorboard_has_curves_pictures_and_tables(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = fit("--config", "logger/tensorboard")
    assert done.code == 0, done.err
    assert cnnlab("test", "R").code == 0
    events = EventAccumulator(str(tmp_path / "R/tensorboard"))
    events.Reload()
    expected = {step: row["val/accuracy"] for step, row in logged(tmp_path / "R").items() if "val/accuracy" in row}
    assert {event.step: event.value for event in events.Scalars("val/accuracy")} == pytest.approx(expected)
    assert {"val/gradcam", "val/errors", "val/confusion_matrix", "test/errors"} <= set(events.Tags()["images"])
    text = events.Tensors("val/hardest/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| kind | index |")


@pytest.mark.parametrize("every", ["1", "1000"])
def test_a_run_saves_itself_although_wandb_s_own_process_has_ended(
    tmp_path: Path, mnist_root: Path, every: str
) -> None:
    """A scheduler sends SIGTERM to W&B's process too, before the training has saved itself."""
    (tmp_path / "ends.py").write_text(
        "import os, signal, subprocess, time\n"
        "from pathlib import Path\n"
        "from cnnlab.tasks import Classification\n"
        "class Ends(Classification):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        if self.trainer.global_step == 4:\n"
        # Not by this process itself, whose signals torch's readers take for a request of their own loader.
        "            stats = {path.parent.name: path.read_text() for path in Path('/proc').glob('[0-9]*/stat')}\n"
        "            own = str(os.getpid())\n"
        "            pids = [pid for pid, stat in stats.items() if stat.rpartition(')')[2].split()[1] == own]\n"
        "            subprocess.run(['bash', '-c', 'kill -TERM \"$@\"', 'kill', *pids])\n"
        "            time.sleep(1)\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().training_step(batch, batch_idx)\n"
    )
    fit: list[str | Path] = [
        "fit",
        "--config",
        TINY,
        "--data.root",
        mnist_root,
        *FLAGS,
        "--model",
        "ends.Ends",
        "--run",
        "R",
    ]
    fit += ["--trainer.log_every_n_steps", every]
    stopped = run_process(*fit, "--data.num_workers", "2", cwd=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    assert "W&B's own process has ended" in stopped.stderr
    assert "stopped by SIGTERM after step 5" in stopped.stderr
    resumed = run_process("resume", "R", "--model", "cnnlab.tasks.Classification", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    steps = sorted(history(pieces(tmp_path / "R")[-1]))
    assert steps == (list(range(16)) if every == "1" else [7, 15])


@pytest.mark.parametrize("error", [ConnectionResetError("lost"), MailboxClosedError(), HandleAbandonedError()])
def test_whatever_says_that_wandb_s_own_process_has_ended_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    logger = Wandb()
    logger.attach(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)

    def finish(**kwargs: object) -> None:
        raise error

    monkeypatch.setattr(logger.experiment, "finish", finish)
    with pytest.warns(UserWarning, match="own process has ended"):
        logger.finalize("failed")
    logger.log_metrics({"a": 2.0}, 1)
    monkeypatch.undo()
    logger.experiment.finish()


def test_objects_and_their_masks_are_drawn_by_the_viewer(cnnlab: Cnnlab, tmp_path: Path) -> None:
    root = write_objects(tmp_path / "photos", {"train": 8, "val": 5, "test": 4})
    recipe = TINY.with_name("instances.yaml")
    flags = ("--config", recipe, "--data.root", root, "--run", "R", "--trainer.max_epochs", "1", *FLAGS)
    assert (done := cnnlab("fit", *flags)).code == 0, done.err
    (piece,) = pieces(tmp_path / "R")
    boxes = [
        json.loads(path.read_text())
        for path in piece.parent.glob("offline-run-*/files/media/metadata/boxes2D/**/*.json")
    ]
    assert boxes
    assert {box["class_id"] for content in boxes for box in content["box_data"]} <= {0, 1}
    masks = [LazyImage(str(path)).size for path in piece.parent.glob("offline-run-*/files/media/images/mask/**/*.png")]
    assert set(masks) == {(64, 64)}
    assert (tmp_path / "R/pictures/validation.png").is_file()
