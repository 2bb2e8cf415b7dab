"""Own photographs through the command line: fit, test, predict, data, fetch, crossval."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from cnnlab.data import ImageFolder
from cnnlab.tasks import Classification
from tests.conftest import TINY_PHOTOS, Cnnlab, write_photos

SHORT = ("--trainer.max_epochs", "1", "--callbacks.unfreezing", "false")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_knows_its_classes_and_its_size(
    fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    """What came from the data was missing in checkpoints (Lightning-AI/pytorch-lightning#8981)."""
    (tmp_path / "w").mkdir()
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w/resnet10t.pth")
    weights = ("--model.network", "resnet10t", "--model.weights", tmp_path / "w")
    fitted = fit_photos(*SHORT, *weights, "--data.size", "null", "--data.batch_size", "12")
    assert fitted.code == 0, fitted.err
    shutil.rmtree(tmp_path / "w")
    kept = torch.load(tmp_path / "R/checkpoints/best.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["class_names"] == ["across", "along", "spots"]
    assert kept["hyper_parameters"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    data = kept["datamodule_hyper_parameters"]
    assert data["size"] == [176, 176]
    assert data["interpolation"] == "bicubic"
    manifest = table(tmp_path / "R/manifest.csv")
    assert len(manifest) == 48
    assert {row["split"] for row in manifest} == {"train", "val", "test"}
    assert cnnlab("test", "R").code == 0
    other = tmp_path / "unlabeled"
    other.mkdir()
    for i, path in enumerate(sorted((photos / "test/spots").iterdir())):
        shutil.copy(path, other / f"{i}.jpg")
    Image.new("RGB", (300, 20)).save(other / "wide.png")
    predicted = cnnlab("predict", "R", "--data.predict", other, "--data.root", "/nowhere")
    assert predicted.code == 0, predicted.err
    rows = table(tmp_path / "R/results/unlabeled/predictions.csv")
    assert [Path(row["path"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "wide.png"]
    assert all(row["target"] == "" for row in rows)
    assert cnnlab("resume", "R", "--trainer.max_epochs", "2").code == 0


def test_a_test_set_with_other_classes_is_refused(fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    """The order of the classes differed between splits, and nobody was told."""
    assert fit_photos(*SHORT).code == 0
    write_photos(tmp_path / "other", {"train": 2, "test": 2})
    (tmp_path / "other/test/spots").rename(tmp_path / "other/test/aaa")
    (tmp_path / "other/train/spots").rename(tmp_path / "other/train/aaa")
    result = cnnlab("test", "R", "--data.root", tmp_path / "other")
    assert result.code == 2
    assert "no class 'aaa'" in result.err


def test_added_files_move_no_image_between_splits(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A test set divided anew after the training holds images that were trained on."""
    write_photos(tmp_path / "p", {"": 20})
    assert cnnlab("fit", "--config", TINY_PHOTOS, "--data.root", "p", "--run", "R", *SHORT).code == 0
    before = (tmp_path / "R/manifest.csv").read_text()
    split = {row["path"]: row["split"] for row in table(tmp_path / "R/manifest.csv")}
    for name in ("across", "spots"):
        for i in range(5):
            shutil.copy(tmp_path / f"p/{name}/00.jpg", tmp_path / f"p/{name}/0{i}-new.jpg")
    with pytest.warns(UserWarning, match=r"10 images of p are not the run's, and are left out: across/00-new"):
        assert cnnlab("predict", "R", "--run", "elsewhere").code == 0
    tested = {str(Path(row["path"]).relative_to("p")) for row in table(tmp_path / "elsewhere/predictions.csv")}
    assert tested == {path for path, where in split.items() if where == "test"}
    with pytest.warns(UserWarning, match="left out"):
        assert cnnlab("resume", "R", "--trainer.max_epochs", "2").code == 0
    assert (tmp_path / "R/manifest.csv").read_text() == before


def test_other_splits_than_the_runs_are_refused(cnnlab: Cnnlab, tmp_path: Path) -> None:
    write_photos(tmp_path / "p", {"": 8})
    assert cnnlab("fit", "--config", TINY_PHOTOS, "--data.root", "p", "--run", "R", *SHORT).code == 0
    for command in ("test", "resume"):
        result = cnnlab(command, "R", "--data.test_size", "0.5")
        assert result.code == 2
        assert "data.test_size is 0.5, but the run's images were divided with 0.15" in result.err


def test_names_need_not_be_ascii(cnnlab: Cnnlab, tmp_path: Path) -> None:
    write_photos(tmp_path / "Blüten äöü", {"train": 4, "val": 2, "test": 2})
    for folder in (tmp_path / "Blüten äöü").glob("*/across"):
        renamed = folder.rename(folder.with_name("späte Blüte λ"))
        (renamed / "00.jpg").rename(renamed / "größe, 1; 花.jpg")
    assert cnnlab("fit", "--config", TINY_PHOTOS, "--data.root", "Blüten äöü", "--run", "läuft", *SHORT).code == 0
    assert cnnlab("test", "läuft").code == 0
    assert cnnlab("predict", "läuft").code == 0
    rows = table(tmp_path / "läuft/predictions.csv")
    assert list(rows[0])[5:] == ["along", "spots", "späte Blüte λ"]
    assert "größe, 1; 花.jpg" in {Path(row["path"]).name for row in rows}
    assert "train/späte Blüte λ/größe, 1; 花.jpg" in {row["path"] for row in table(tmp_path / "läuft/manifest.csv")}


@pytest.mark.filterwarnings("ignore:.*times as large as their weights.*")
def test_mixed_batches_have_a_meaningful_accuracy(fit_photos: Cnnlab, tmp_path: Path) -> None:
    options = ("--data.mixing", "{mixup: 0.2, cutmix: 1.0}", "--callbacks.gradients", "true")
    result = fit_photos(*options, "--callbacks.gradients.every_n_steps", "2")
    assert result.code == 0, result.err
    rows = table(tmp_path / "R/metrics.csv")
    accuracies = [float(row["train/accuracy"]) for row in rows if row["train/accuracy"]]
    assert all(0 < accuracy < 1 for accuracy in accuracies)
    assert any(accuracy * 24 % 1 > 1e-6 for accuracy in accuracies)
    assert any(row["gradients/total_norm"] for row in rows)


@pytest.mark.filterwarnings("ignore:.*No positive samples.*")
def test_several_labels_train_test_and_predict(cnnlab: Cnnlab, photos: Path, tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for path in sorted(photos.rglob("*.jpg")):
        split, name, _ = path.relative_to(photos).parts
        labels = {"across": "striped", "along": "striped;wide", "spots": ""}[name]
        rows.append(f"{path.relative_to(photos)},{labels},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options = ("--data.csv", tmp_path / "labels.csv", "--data.multi_label", "true", "--data.mixing", "true")
    fitted = cnnlab("fit", "--config", TINY_PHOTOS, "--data.root", photos, "--run", "R", *SHORT, *options)
    assert fitted.code == 0, fitted.err
    assert cnnlab("test", "R").code == 0
    results = json.loads((tmp_path / "R/test.json").read_text())
    assert 0 <= results["test/average_precision"] <= 1
    assert cnnlab("predict", "R").code == 0
    predicted = table(tmp_path / "R/predictions.csv")
    assert {row["target"] for row in predicted} == {"0", "0;1", ""}
    assert list(predicted[0])[-2:] == ["striped", "wide"]


def test_data_show_writes_a_contact_sheet(fit_photos: Cnnlab, cnnlab: Cnnlab, photos: Path, tmp_path: Path) -> None:
    arguments = ("--config", TINY_PHOTOS, "--data.root", photos, "--data.mixing", "true")
    assert cnnlab("data", "show", *arguments, "--out", "sheet.png").code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 100
    assert fit_photos(*SHORT).code == 0
    assert cnnlab("data", "show", "R").code == 0
    assert (tmp_path / "R/pictures/batch.png").is_file()
    assert "show" in cnnlab("data", "shaw").err
    assert cnnlab("data", "--help").code == 0


@pytest.mark.filterwarnings("ignore:.*cannot be read and are left out.*")
def test_data_check_names_broken_files_and_copies(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A corrupt file ended an epoch without a name (pytorch/vision#4925); a test image was trained on."""
    write_photos(tmp_path / "p", {"train": 3, "val": 2, "test": 2})
    arguments = ("data", "check", "--config", TINY_PHOTOS, "--data.root", "p")
    good = cnnlab(*arguments)
    assert good.code == 0, good.err
    assert "21 images can be read" in good.out
    (tmp_path / "p/train/spots/bad.jpg").write_bytes(b"no")
    shutil.copy(tmp_path / "p/test/spots/00.jpg", tmp_path / "p/train/spots/copy.jpg")
    bad = cnnlab(*arguments)
    assert bad.code == 2
    assert "broken: p/train/spots/bad.jpg: " in bad.out
    assert "train/spots/copy.jpg, test/spots/00.jpg" in bad.out
    assert "1 files cannot be read, 1 images stand in more than one split" in bad.err


@pytest.mark.filterwarnings("ignore:.*cannot be read and are left out.*")
def test_training_goes_on_without_broken_files_and_stops_with_them(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A corrupt file ended a training without saying which (pytorch/vision#4925, #8297)."""
    write_photos(tmp_path / "p", {"train": 8, "val": 2, "test": 2})
    whole = (tmp_path / "p/train/spots/00.jpg").read_bytes()
    (tmp_path / "p/train/spots/truncated.jpg").write_bytes(whole[:500])
    (tmp_path / "p/val/along/empty.jpg").write_bytes(b"")
    batches = ("--data.drop_last", "false", "--data.batch_size", "5")
    arguments = ("fit", "--config", TINY_PHOTOS, "--data.root", "p", *SHORT, *batches)
    stopped = cnnlab(*arguments, "--run", "A", "--data.num_workers", "1", "--trainer.num_sanity_val_steps", "0")
    assert stopped.code == 2
    assert stopped.err.splitlines()[-1].startswith("cnnlab: p/train/spots/truncated.jpg: ")
    assert len(stopped.err.splitlines()[-1]) < 200
    assert cnnlab(*arguments, "--run", "B", "--data.on_error", "skip").code == 0
    errors = {row["path"]: row["error"] for row in table(tmp_path / "B/manifest.csv") if row["error"]}
    assert sorted(errors) == ["train/spots/truncated.jpg", "val/along/empty.jpg"]


def test_a_task_that_arrives_in_evaluation_mode_is_trained_in_training_mode(photos: Path, tmp_path: Path) -> None:
    """Since Lightning 2.2 a module in eval mode is trained in it (Lightning-AI/pytorch-lightning#18951, #20573)."""
    task = Classification("test_resnet", 3, class_names=["across", "along", "spots"]).eval()
    data = ImageFolder(str(photos), size=32, batch_size=8, num_workers=0)
    before = task.network.state_dict()["bn1.running_mean"].clone()
    Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    ).fit(task, datamodule=data)  # fmt: skip
    assert task.network.training
    assert not torch.equal(before, task.network.state_dict()["bn1.running_mean"])


def test_fetch_finds_what_is_there(
    cnnlab: Cnnlab, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute nodes without internet looked for weights there (diffusers#5519)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ("--config", TINY_PHOTOS, "--data.root", photos, "--model.weights", "pretrained")
    without = cnnlab("fetch", *arguments, "--to", "w")
    assert without.code == 2
    assert "weights of test_resnet could not be had" in without.err
    (tmp_path / "w").mkdir()
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w/test_resnet.pth")
    fetched = cnnlab("fetch", *arguments, "--to", "w")
    assert fetched.code == 0
    assert "w/test_resnet.pth" in fetched.out
    taught = cnnlab("fetch", *arguments, "--model", "Distillation", "--model.teacher", "timm/test_resnet", "--to", "w")
    assert taught.out.count("w/test_resnet.pth") == 2, taught.err


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_crossval_predicts_each_image_by_a_network_that_has_not_seen_it(
    cnnlab: Cnnlab, photos: Path, tmp_path: Path
) -> None:
    arguments = ("--config", TINY_PHOTOS, "--data.root", photos, "--folds", "2", "--run", "C", *SHORT)
    done = cnnlab("crossval", *arguments)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "C/crossval.json").read_text())
    accuracy = results["metrics"]["val/accuracy"]
    assert len(accuracy["folds"]) == 2
    rows = table(tmp_path / "C/predictions.csv")
    assert len(rows) == len({row["path"] for row in rows}) == 36
    for fold, measured in enumerate(accuracy["folds"]):
        own = [row["target"] == row["label"] for row in rows if row["fold"] == str(fold)]
        assert sum(own) / len(own) == pytest.approx(measured, abs=1e-6)
    assert accuracy["mean"] == pytest.approx(sum(accuracy["folds"]) / 2)
    manifests = [table(tmp_path / f"C/fold-{fold}/manifest.csv") for fold in range(2)]
    for fold, manifest in enumerate(manifests):
        trained = {row["path"] for row in manifest if row["split"] == "train"}
        predicted = {str(Path(row["path"]).relative_to(photos)) for row in rows if row["fold"] == str(fold)}
        assert not trained & predicted
    before = (tmp_path / "C/fold-0/checkpoints/last.ckpt").stat().st_mtime_ns
    (tmp_path / "C/fold-1/validation.json").unlink()
    assert cnnlab("crossval", *arguments).code == 0
    assert (tmp_path / "C/fold-0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    other = cnnlab("crossval", *arguments, "--model.lr", "0.5")
    assert other.code == 2
    assert "begun with other folds or options" in other.err


def test_one_batch_can_be_learned_by_heart(fit_photos: Cnnlab, tmp_path: Path) -> None:
    """With a new batch an epoch the loss would not fall to 0."""
    options = ("--config", "trainer/overfit", "--callbacks.unfreezing", "false", "--trainer.max_epochs", "25")
    flags = (
        "--model.lr",
        "0.005",
        "--model.dropout",
        "0",
        "--model.head",
        "linear",
        "--trainer.check_val_every_n_epoch",
        "25",
    )
    result = fit_photos(*options, *flags, "--model.schedule", "constant")
    assert result.code == 0, result.err
    losses = [float(row["train/loss_step"]) for row in table(tmp_path / "R/metrics.csv") if row["train/loss_step"]]
    assert losses[-1] < 0.05 < losses[0]


def test_what_the_searches_find_is_used_and_kept(fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    options = ("--callbacks.unfreezing", "false", "--model.schedule", "constant", "--data.batch_size", "3")
    search = ("--callbacks.lr_finder", "true", "--callbacks.lr_finder.num_training_steps", "30")
    assert fit_photos(*options, *search, "--trainer.max_epochs", "4").code == 0
    kept = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    found = kept["hyper_parameters"]["lr"]
    assert found != 1e-3
    assert {group["lr"] for group in kept["optimizer_states"][0]["param_groups"]} == {found}
    assert kept["global_step"] == 32
    assert yaml.safe_load((tmp_path / "R/config.yaml").read_text())["model"]["init_args"]["lr"] == found
    resumed = cnnlab("resume", "R", "--trainer.max_epochs", "5")
    assert resumed.code == 0, resumed.err
    assert "epoch 5/5  step 40" in resumed.out
    size = ("--callbacks.batch_size_finder", "true", "--callbacks.batch_size_finder.max_trials", "2")
    trained = fit_photos(*options[:2], "--model.schedule", "cosine", *size, "--trainer.max_epochs", "2", "--run", "B")
    assert trained.code == 0, trained.err
    last = torch.load(tmp_path / "B/checkpoints/last.ckpt", weights_only=True)
    assert last["datamodule_hyper_parameters"]["batch_size"] == 4
    assert last["global_step"] == 12
    assert last["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-9)


def test_shipped_recipes_for_photographs_differ_as_they_say(cnnlab: Cnnlab) -> None:
    from cnnlab import recipes

    loaded = {
        name: yaml.safe_load((recipes.folder() / f"{name}.yaml").read_text())
        for name in ("image_folder", "linear_probe", "finetune", "from_scratch")
    }
    assert "layer_decay" in loaded["finetune"]["model"]["init_args"]
    assert "weights" not in loaded["from_scratch"]["model"]["init_args"]
    assert len(loaded["linear_probe"]["callbacks"]["unfreezing"]["init_args"]["phases"]) == 1
    assert len(loaded["image_folder"]["callbacks"]["unfreezing"]["init_args"]["phases"]) >= 2
