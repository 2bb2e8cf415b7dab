import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cnnlab import data, recipes
from cnnlab.callbacks.slots import SLOTS
from cnnlab.commands import COMMANDS
from cnnlab.commands.arguments import OF_FILES
from cnnlab.data import Shapes
from cnnlab.data.listed_files import ListedFiles
from cnnlab.errors import InputError
from cnnlab.tasks import Classification
from tests.conftest import TINY, Cnnlab, command


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    """The help took four seconds (anomalib#3535)."""
    code = (
        "import sys; from cnnlab.cli import main; main(['--help']); main(['--version']);"
        "print([m for m in ('torch', 'lightning', 'numpy', 'matplotlib', 'jsonargparse') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name}\s+{re.escape(entry.purpose)}$", done.stdout, re.MULTILINE)
    assert done.stdout.strip().endswith("[]")


def test_version_names_what_a_bug_report_needs(cnnlab: Cnnlab) -> None:
    out = cnnlab("--version").out
    assert re.search(rf"^torch\s+{re.escape(str(torch.__version__).split('+')[0])}", out, re.MULTILINE)
    assert all(f"\n{name} " in out for name in ("python", "lightning", "torchvision", "timm", "jsonargparse"))


def test_recipes_lists_each_with_a_line(cnnlab: Cnnlab) -> None:
    lines = cnnlab("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.names())
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


@pytest.mark.parametrize("name", [name for name in recipes.names() if "/" not in name])
def test_every_recipe_prints_its_configuration(cnnlab: Cnnlab, name: str) -> None:
    """Shipped configurations no longer parsed."""
    result = cnnlab("fit", "--config", name, "--print_config")
    assert result.code == 0
    printed = yaml.safe_load(result.out)
    shipped = yaml.safe_load((recipes.folder() / f"{name}.yaml").read_text())
    assert printed["model"]["init_args"]["network"] == shipped["model"]["init_args"]["network"]
    assert printed["trainer"]["max_epochs"] == shipped["trainer"]["max_epochs"]


def covers(whole: Any, part: Any) -> bool:
    """Whether all that a nested dictionary says stands in another too."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and covers(whole[name], value) for name, value in part.items())
    return bool(whole == part)


@pytest.mark.parametrize("name", [name for name in recipes.names() if "/" in name])
def test_every_overlay_goes_on_top_of_a_recipe(cnnlab: Cnnlab, name: str) -> None:
    printed = yaml.safe_load(cnnlab("fit", "--config", "mnist", "--config", name, "--print_config").out)
    overlay = yaml.safe_load((recipes.folder() / f"{name}.yaml").read_text())
    assert covers(printed, overlay)

    assert printed["trainer"]["max_epochs"] == overlay["trainer"].get("max_epochs", 10)


def test_a_printed_configuration_loads_again(cnnlab: Cnnlab, tmp_path: Path) -> None:
    first = cnnlab("fit", "--config", "mnist", "--print_config").out
    (tmp_path / "again.yaml").write_text(first)
    assert cnnlab("fit", "--config", "again.yaml", "--print_config").out == first


@pytest.mark.parametrize("order", [["flag", "config"], ["config", "flag"]])
def test_flags_beat_configs_wherever_they_stand(cnnlab: Cnnlab, order: list[str]) -> None:
    parts = {"flag": ["--trainer.max_epochs", "77", "--model.lr=0.5"], "config": ["--config", "mnist"]}
    arguments = [part for name in order for part in parts[name]]
    printed = yaml.safe_load(cnnlab("fit", *arguments, "--print_config").out)
    assert printed["trainer"]["max_epochs"] == 77
    assert printed["model"]["init_args"]["lr"] == 0.5
    assert printed["model"]["init_args"]["label_smoothing"] == 0.05


def test_configs_overlay_in_their_order(cnnlab: Cnnlab, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("trainer: {max_epochs: 1, max_steps: 11}\nmodel: {init_args: {lr: 0.1}}\n")
    (tmp_path / "two.yaml").write_text("trainer: {max_epochs: 2}\n")
    arguments = ["--config", "mnist", "-c", "one.yaml", "--config=two.yaml", "--print_config"]
    printed = yaml.safe_load(cnnlab("fit", *arguments).out)
    assert (printed["trainer"]["max_epochs"], printed["trainer"]["max_steps"]) == (2, 11)
    assert printed["model"]["init_args"]["lr"] == 0.1
    assert printed["model"]["init_args"]["network"] == "simple_cnn"


def test_a_run_leaves_a_folder_that_can_be_tested_and_predicted(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    result = fit()
    assert result.code == 0, result.err
    assert "best" in result.out
    assert "cnnlab test R" in result.out
    tested = cnnlab("test", "R")
    assert tested.code == 0
    assert cnnlab("predict", "R").code == 0
    folder = tmp_path / "R"
    accuracy = json.loads((folder / "test.json").read_text())["test/accuracy"]
    assert re.search(rf"test/accuracy\s+{accuracy:.6g}\s", tested.out)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strips = {name for name in names if name.startswith("pictures/gradcam/")}
    assert len(strips) == 8
    hard = {name for name in names if name.startswith(("errors/val/", "errors/test/"))}
    assert 32 < len(hard) <= 64
    assert names - strips - hard == {
        "config.yaml",
        "environment.json",
        "measured.json",
        "metrics.csv",
        "test.json",
        "classes.csv",
        "confusion_matrix.csv",
        "errors/test.csv",
        "errors/val.csv",
        "predictions.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "pictures/gradcam.png",
        "pictures/predictions.png",
        "pictures/test_confusion_matrix.png",
        "pictures/test_errors.png",
        "pictures/val_confusion_matrix.png",
        "pictures/val_errors.png",
        "reliability.csv",
        "report.html",
    }
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]
    validated = cnnlab("validate", "R")
    assert re.search(r"val/accuracy\s+[01]", validated.out)


def test_a_run_without_a_name_is_called_after_its_recipe(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    result = cnnlab("fit", "--config", TINY, "--data.root", mnist_root, "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"classification-\d{8}-\d{6}", folder.name)


def test_an_existing_run_is_never_overwritten(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    """An old config.yaml ended the run (Lightning-AI/pytorch-lightning#7679, torchgeo#1621)."""
    assert fit().code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "R").rglob("*") if path.is_file()}
    refused = fit("--model.lr", "0.5")
    assert refused.code == 2
    assert "cnnlab resume R" in refused.err
    assert {path: path.read_bytes() for path in (tmp_path / "R").rglob("*") if path.is_file()} == before


def test_resume_auto_starts_or_goes_on(fit: Cnnlab, tmp_path: Path) -> None:
    assert fit("--resume", "auto", "--trainer.max_epochs", "1").code == 0
    result = fit("--resume", "auto", "--trainer.max_epochs", "2")
    assert result.code == 0, result.err
    steps = [int(line.split(",")[0]) for line in (tmp_path / "R/metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(16))
    assert len(json.loads((tmp_path / "R/environment.json").read_text())["resumed"]) == 1


def test_resuming_a_finished_run_says_so(fit: Cnnlab, cnnlab: Cnnlab) -> None:
    assert fit().code == 0
    result = cnnlab("resume", "R")
    assert result.code == 0
    assert "nothing was left to train" in result.out
    assert cnnlab("resume", "R", "--trainer.max_epochs", "3").code == 0


def test_resume_fails_where_there_is_nothing_to_resume(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """ckpt_path=last began anew, and said nothing, where there was nothing (Lightning-AI/pytorch-lightning#18524)."""
    for arguments, message in (
        (["resume", "R"], "there is no run or checkpoint R"),
        (["resume"], "resume needs a run"),
        (["test", "R"], "there is no run or checkpoint R"),
        (["test"], "test needs trained weights"),
        (["test", "--config", "mnist"], "test needs trained weights"),
        (["predict", "--ckpt_path", "x.ckpt"], "x.ckpt"),
    ):
        result = cnnlab(*arguments)
        assert result.code == 2
        assert message in result.err
    (tmp_path / "E/checkpoints").mkdir(parents=True)
    for name in ("resume", "test"):
        result = cnnlab(name, "E")
        assert result.code == 2
        assert "no checkpoint" in result.err


def test_flag_beats_config_beats_checkpoint_and_the_difference_is_printed(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    """Saved hyperparameters were ignored, or beat flags (Lightning-AI/pytorch-lightning#20310, #20801, #21455)."""
    assert fit("--model.lr", "0.02", "--model.label_smoothing", "0.1").code == 0
    checkpoint = tmp_path / "R/checkpoints/last.ckpt"
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes(checkpoint.read_bytes())
    alone = yaml.safe_load(cnnlab("test", "--ckpt_path", moved, "--print_config").out)
    assert alone["model"]["init_args"]["lr"] == 0.02
    (tmp_path / "over.yaml").write_text("model: {init_args: {lr: 0.03, label_smoothing: 0.2}}\n")
    arguments = ["test", moved, "--config", "over.yaml", "--model.lr", "0.04", "--run", "T"]
    printed = yaml.safe_load(cnnlab(*arguments, "--print_config").out)
    assert printed["model"]["init_args"]["lr"] == 0.04
    assert printed["model"]["init_args"]["label_smoothing"] == 0.2
    result = cnnlab(*arguments)
    assert result.code == 0, result.err
    assert "model.lr is 0.04 (the checkpoint's: 0.02)" in result.out
    assert "model.label_smoothing is 0.2 (the checkpoint's: 0.1)" in result.out
    assert "model.network" not in result.out


def test_a_checkpoint_alone_is_enough_to_predict(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit("--model.network_args", '{"dropout": 0.1}').code == 0
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes((tmp_path / "R/checkpoints/best.ckpt").read_bytes())
    assert cnnlab("predict", "--ckpt_path", moved, "--run", "P").code == 0
    assert cnnlab("predict", "R").code == 0
    assert (tmp_path / "P/predictions.csv").read_text() == (tmp_path / "R/predictions.csv").read_text()


def test_what_comes_from_the_data_is_in_the_checkpoint(fit: Cnnlab, tmp_path: Path) -> None:
    """Values linked from the data were missing (Lightning-AI/pytorch-lightning#8981, py4cast#163)."""
    assert fit().code == 0
    kept = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert kept["num_classes"] == 10
    assert kept["channels"] == 1
    assert kept["class_names"] == list("0123456789")
    assert (kept["mean"], kept["std"]) == ([0.1307], [0.3081])


def test_a_value_that_contradicts_the_data_is_refused(fit: Cnnlab) -> None:
    result = fit("--model.num_classes", "7")
    assert result.code == 2
    assert "model.num_classes is 7, but the data have 10" in result.err


OWN_TASK = """
from typing import Any
from cnnlab.tasks import Classification

class Own(Classification):
    def __init__(self, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", TINY.with_name("distillation.yaml"), "--model.num_classes", "7"], "num_classes is 7"),
        (["--config", TINY, "--model", "own_task.Own", "--model.num_classes", "7"], "num_classes is 7"),
        (["--config", TINY, "--model", "own_task.Own", "--model.channels", "1"], None),
        (
            ["--config", TINY.with_name("distillation.yaml"), "--model.class_names", "[a, b]"],
            "class_names is ['a', 'b']",
        ),
        (["--config", TINY.with_name("segmentation.yaml"), "--model.num_classes", "7"], "num_classes is 7"),
    ],
)
def test_a_contradiction_is_refused_whoever_takes_the_argument(
    cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path, arguments: list[str | Path], message: str | None
) -> None:
    """A task that hands its arguments on by **kwargs dropped what contradicts the data, and trained."""
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    root = [] if "segmentation" in str(arguments[1]) else ["--data.root", mnist_root]
    result = cnnlab("fit", *arguments, *root, "--run", "R", "--trainer.max_epochs", "1")
    if message is None:
        assert result.code == 0, result.err
        return
    assert result.code == 2
    assert re.search(rf"model\.{re.escape(message)}.*, but the data have", result.err)
    assert "leave it out, it is taken from the data" in result.err
    assert result.err.count("cnnlab: ") == 1
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize("command", ["fit", "data"])
def test_a_task_and_data_of_other_answers_are_refused_in_one_line(cnnlab: Cnnlab, tmp_path: Path, command: str) -> None:
    """Classes of images were trained on masks until the loss failed with a message about shapes.

    No file is read before: a million images would have been listed for nothing.
    """
    first = ["data", "show"] if command == "data" else [command]
    result = cnnlab(*first, "--model", "Classification", "--data", "MaskFolder", "--data.root", "nowhere")
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("cnnlab: ")]
    assert "the data have masks (MaskFolder), but Classification answers with labels: choose a task for masks" in line
    assert "Traceback" not in result.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_data_of_other_answers_are_refused_in_python_too(tmp_path: Path) -> None:
    data = Shapes(root=str(tmp_path / "shapes"), images=8, side=32)
    with pytest.raises(InputError, match=r"the data have masks \(Shapes\), but Classification answers with labels"):
        Classification.for_data(data)


@pytest.mark.parametrize(
    ("flags", "now", "slot", "settings"),
    [
        (["--callbacks.masks", "false"], "--callbacks.predictions.files", "predictions", {"files": False}),
        (["--callbacks.masks.overlays=false"], "--callbacks.predictions.overlays", "predictions", {"overlays": False}),
        (
            ["--callbacks.masks.probabilities", "true"],
            "--callbacks.predictions.probabilities",
            "predictions",
            {"probabilities": True},
        ),
        (
            ["--callbacks.validation_masks.images", "7"],
            "--callbacks.validation_pictures.images",
            "validation_pictures",
            {"images": 7},
        ),
    ],
)
def test_old_names_of_slots_are_understood_and_say_the_new_one(
    cnnlab: Cnnlab, flags: list[str], now: str, slot: str, settings: dict[str, object]
) -> None:
    result = cnnlab("fit", "--config", "shapes", *flags, "--print_config")
    assert result.code == 0, result.err
    old = flags[0].partition("=")[0]
    assert [line for line in result.err.splitlines() if "is called" in line] == [f"{old} is called {now} now"]
    assert settings.items() <= yaml.safe_load(result.out)["callbacks"][slot]["init_args"].items()


def test_slots_are_switched_and_set_one_by_one(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Adding one callback dropped the defaults (Lightning-AI/pytorch-lightning#15256)."""
    flags = ["--callbacks.ema", "true", "--callbacks.last.every_n_minutes", "5", "--callbacks.best", "false"]
    printed = yaml.safe_load(cnnlab("fit", "--config", "mnist", *flags, "--print_config").out)["callbacks"]
    assert set(printed) == set(SLOTS)
    assert printed["ema"] is True
    assert printed["best"] is False
    assert printed["throughput"] is True
    assert printed["last"]["init_args"]["every_n_minutes"] == 5
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    extra = f"--trainer.callbacks+={json.dumps(early)}"
    assert fit(*flags, extra).code == 0
    assert [path.name for path in (tmp_path / "R/checkpoints").iterdir()] == ["last.ckpt"]
    saved = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    assert "current_model_state" in saved
    assert any(key.startswith("EarlyStopping") for key in saved["callbacks"])


def test_a_trial_run_leaves_nothing_behind(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    arguments = ["--config", TINY, "--config", "trainer/debug", "--data.root", mnist_root, "--callbacks.ema", "true"]
    result = cnnlab("fit", *arguments)
    assert result.code == 0, result.err
    assert "next" not in result.out
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


def test_wandb_has_the_resolved_configuration_once(
    fit: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration was missing from wandb, or there twice (Lightning-AI/pytorch-lightning#19728, #14628)."""
    import wandb

    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"offline": True, "save_dir": "R"}}
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = fit("--trainer.logger", json.dumps(logger), "--model.lr", "0.03", "--trainer.max_epochs", "1")
    assert wandb.run is not None
    seen = dict(wandb.run.config)
    wandb.finish()
    assert result.code == 0, result.err
    assert set(seen) == {"seed_everything", "trainer", "model", "data", "callbacks"}
    resolved = yaml.safe_load((tmp_path / "R/config.yaml").read_text())
    assert seen["model"] == resolved["model"]
    assert resolved["model"]["init_args"]["lr"] == 0.03
    assert (tmp_path / "R/metrics.csv").exists()


def test_checkpoints_lie_in_no_sub_folders(fit: Cnnlab, tmp_path: Path) -> None:
    """A slash in a metric's name made sub-folders (Lightning-AI/pytorch-lightning#4012, #5301)."""
    assert fit().code == 0
    assert {path.name for path in (tmp_path / "R/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_users_classes_in_the_working_folder_are_found(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from cnnlab.data import MNIST\n"
        "from cnnlab.tasks import Classification\n"
        "class MyData(MNIST):\n    pass\n"
        "class MyTask(Classification):\n    pass\n"
        "class MyNetwork(nn.Sequential):\n"
        "    def __init__(self, num_classes, channels):\n"
        "        super().__init__(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, num_classes))\n"
    )
    arguments = ["--model", "mine.MyTask", "--data", "mine.MyData", "--data.root", mnist_root, "--data.val_size", "64"]
    result = cnnlab("fit", *arguments, "--model.network", "mine.MyNetwork", "--trainer.max_epochs", "1", "--run", "R")
    assert result.code == 0, result.err
    assert cnnlab("test", tmp_path / "R/checkpoints/best.ckpt").code == 0


def test_a_users_task_need_not_be_one_of_cnnlabs(cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "import torch\n"
        "from lightning.pytorch import LightningModule\n"
        "class Plain(LightningModule):\n"
        "    monitor, mode = 'val/loss', 'min'\n"
        "    def __init__(self, width: int = 10):\n"
        "        super().__init__()\n"
        "        self.save_hyperparameters()\n"
        "        self.layer = torch.nn.Linear(784, width)\n"
        "    def loss(self, batch):\n"
        "        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1) / 255), batch[1])\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return self.loss(batch)\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        self.log('val/loss', self.loss(batch))\n"
        "    def test_step(self, batch, batch_idx):\n"
        "        self.log('test/loss', self.loss(batch))\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), 0.1)\n"
    )
    arguments = ["--model", "plain.Plain", "--model.width", "12", "--data", "MNIST", "--data.root", mnist_root]
    result = cnnlab("fit", *arguments, "--data.val_size", "64", "--trainer.max_epochs", "2", "--run", "R")
    assert result.code == 0, result.err
    assert "Plain: 9,420 parameters" in result.out
    assert cnnlab("test", tmp_path / "R/checkpoints/best.ckpt").code == 0
    assert list(json.loads((tmp_path / "R/test.json").read_text())) == ["test/loss"]
    assert cnnlab("resume", "R", "--trainer.max_epochs", "3").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ft"], "there is no command 'ft': did you mean 'fit'"),
        (["fit", "--config", "mnits"], "did you mean 'mnist'"),
        (["fit", "--config", "nowhere/x.yaml"], "nowhere/x.yaml"),
        (["fit", "--config"], "--config lacks its value"),
        (["fit", "mnist"], "--config mnist"),
        (["fit", "--config", "mnist", "--resume", "always"], "never or auto"),
        (["fit", "--config", "mnist", "--trainer.max_epoch", "3"], "did you mean 'trainer.max_epochs'"),
        (["fit", "--config", "mnist", "--tariner.max_epochs", "3"], "trainer.max_epochs"),
        (["fit", "--config", "mnist", "--lr", "1"], "there is no option --lr: did you mean 'model.lr'"),
        (["fit", "--config", "mnist", "--epochs", "3"], "did you mean 'trainer.max_epochs'"),
        (["fit", "--config", "mnist", "--seed", "3"], "or 'seed_everything'"),
        (["fit", "--config", "mnist", "--ema", "true"], "there is no option --ema: did you mean 'callbacks.ema'"),
        (["fit", "--config", "mnist", "--trainer.max_epochs", "x"], "trainer.max_epochs is 'x', expected int or null"),
        (["fit", "--config", "mnist", "--model.lrr", "1"], "has no 'lrr': did you mean 'lr'"),
        (["fit", "--config", "mnist", "--model.lr", "fast"], "model.lr is 'fast', expected float"),
        (["fit", "--config", "mnist", "--model", "Clasification"], "did you mean 'Classification'"),
        (["fit", "--config", "mnist", "--data.rot", "x"], "did you mean 'root'"),
        (["fit", "--config", "mnist", "--data.dataset", "EMNIST"], "data.dataset is 'EMNIST', expected"),
        (["fit", "--config", "mnist", "--callbacks.emma", "true"], "did you mean 'callbacks.ema'"),
        (["fit", "--config", "mnist", "--callbacks.ema.dacay", "0.9"], "did you mean 'decay'"),
        (["fit", "--config", "mnist", "--callbacks.ema.decay", "2"], "callbacks.ema.decay is 2"),
        (["fit", "--config", "mnist", "--model.network", "simple_cn"], "did you mean 'simple_cnn'"),
        (["fit", "--config", "mnist", "--model.optimizer", "adamv"], "there is no optimizer 'adamv'"),
        (["fit", "--config", "mnist", "--model.schedule", "cosin"], "did you mean 'cosine'"),
        (["fit", "--config", "mnist", "--data.root", "nowhere", "--data.download", "false"], "MNIST is not in"),
        (["fit", "--config", "mnist", "--data.val_size", "-5"], "val_size is -5"),
        (["fit", "--config", "mnist", "--model.weight_decay", "-1"], "weight_decay"),
        (["fit", "--config", "mnist", "--model.schedule", "plateau", "--model.schedule_args", '{"a": 1}'], "'a'"),
        (["fit", "--config", "mnist", "--callbacks.best.monitor", "val/loss"], "which values of 'val/loss'"),
        (["fit", "--config", "mnist", "--ckpt_path", "none.ckpt"], "none.ckpt"),
        (["test", "R", "--resume", "auto"], "--resume is for fit"),
        (["fit", "--config", "mnist", "--model.optimizer_args", '{"momentumm": 1}'], "momentumm"),
    ],
)
def test_bad_input_gets_one_line_that_names_it(
    cnnlab: Cnnlab, tmp_path: Path, arguments: list[str], message: str, mnist_root: Path
) -> None:
    """Errors about class_path named everything but the key (Lightning-AI/pytorch-lightning#10859)."""
    if "--data.root" not in arguments and "mnist" in arguments[2:]:
        sized = [] if "--data.val_size" in arguments else ["--data.val_size", "64"]
        arguments = [*arguments, "--data.root", str(mnist_root), *sized]
    result = cnnlab(*arguments)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("cnnlab: ")]
    assert message in line
    assert "Traceback" not in result.err
    runs = tmp_path / "runs"
    assert not runs.is_dir() or not list(runs.iterdir())


def test_a_file_that_is_no_configuration_is_named(cnnlab: Cnnlab, tmp_path: Path) -> None:
    for name, content, message in (
        ("broken.yaml", b"model: [", "broken.yaml is not YAML"),
        ("picture.yaml", b"\x89PNG\xff\xfe", "picture.yaml is not YAML"),
        ("words.yaml", b"hello", "words.yaml holds no keys"),
    ):
        (tmp_path / name).write_bytes(content)
        result = cnnlab("fit", "--config", "mnist", "--config", name)
        assert result.code == 2
        assert message in result.err
    assert "--model must be given" in cnnlab("fit", "--data", "MNIST").err


@pytest.mark.parametrize(
    "text", ["tariner: {max_epochs: 1}", "trainer: {max_epoch: 1}", "model: {init_args: {lrr: 1}}"]
)
def test_a_misspelt_key_in_a_file_is_named_at_any_level(cnnlab: Cnnlab, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    result = cnnlab("fit", "--config", "mnist", "--config", "bad.yaml")
    assert result.code == 2
    assert "did you mean" in result.err
    assert re.search("tariner|max_epoch|lrr", result.err)


def test_a_traceback_comes_on_request(cnnlab: Cnnlab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="there is no command"):
        cnnlab("ft")


def test_images_of_other_channels_are_refused(fit: Cnnlab, cnnlab: Cnnlab, mnist_root: Path, tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs", "1").code == 0
    (tmp_path / "rgb.py").write_text(
        "from cnnlab.data import MNIST\n"
        "class RGB(MNIST):\n"
        "    def load(self, train):\n"
        "        images, targets = super().load(train)\n"
        "        return images.expand(-1, 3, -1, -1), targets\n"
    )
    result = cnnlab("test", "R", "--data", "rgb.RGB", "--data.root", mnist_root, "--run", "T")
    assert result.code == 2
    assert "made for 1 channel" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "wide.RGB"], "model.channels is 3, but the checkpoint's is 1"),
        (["--model.network", "resnet10t"], "model.network is 'resnet10t', but the checkpoint's is 'simple_cnn'"),
    ],
)
def test_what_would_not_fit_the_checkpoint_is_refused(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "wide.py").write_text(
        "from cnnlab.data import MNIST\n"
        "class RGB(MNIST):\n"
        "    channels = 3\n"
        "    def __init__(self, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.mean, self.std = self.mean * 3, self.std * 3\n"
    )
    assert fit("--trainer.max_epochs", "1").code == 0
    result = cnnlab("test", "R", *flags)
    assert result.code == 2
    assert message in result.err


def test_a_learning_rate_changed_on_resume_counts(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A flag on resuming was printed, and ignored (Lightning-AI/pytorch-lightning#20801)."""
    assert fit("--model.schedule", "constant", "--model.weight_decay", "0.1").code == 0
    flags = ["--trainer.max_epochs", "3", "--model.lr", "0.005", "--model.weight_decay", "0.2"]
    result = cnnlab("resume", "R", *flags)
    assert result.code == 0, result.err
    assert "model.lr is 0.005 (the checkpoint's: 0.01)" in result.out
    saved = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.005, 0.005]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.2]
    for change in (["--model.optimizer", "sgd"], ["--model.weight_decay", "0"]):
        refused = cnnlab("resume", "R", "--trainer.max_epochs", "4", *change)
        assert refused.code == 2
        assert "a run cannot go on with another" in refused.err


def test_a_run_goes_on_after_the_file_that_it_started_from_is_gone(
    fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit().code == 0
    weights = tmp_path / "R/checkpoints/best.ckpt"
    weights = weights.rename(tmp_path / "weights.ckpt")
    started = fit("--run", "S", "--model.init_from", weights, "--trainer.max_epochs", "1")
    assert started.code == 0, started.err
    assert "tensors" in caplog.text
    assert "as initialized" not in caplog.text
    caplog.clear()
    weights.unlink()
    result = cnnlab("resume", "S", "--trainer.max_epochs", "2")
    assert result.code == 0, result.err
    assert "tensors" not in caplog.text


def test_a_schedule_that_moves_each_step_is_a_flag(fit: Cnnlab, tmp_path: Path) -> None:
    """OneCycle wants total_steps, which nobody knows on the command line (Lightning-AI/pytorch-lightning#15340)."""
    assert fit("--model.schedule", "onecycle", "--model.warmup", "0.5").code == 0
    with (tmp_path / "R/metrics.csv").open(newline="") as file:
        rates = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file)]
    assert len(set(rates)) > 10
    assert rates[:8] == sorted(rates[:8])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert max(rates) == pytest.approx(0.01)


def test_another_checkpoint_of_a_run_can_be_named(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit().code == 0
    assert fit("--run", "S", "--model.lr", "0.02").code == 0
    before = (tmp_path / "S/config.yaml").read_bytes()
    assert cnnlab("test", "R", "--ckpt_path", "last").code == 0
    assert cnnlab("test", "R", "--ckpt_path", tmp_path / "S/checkpoints/last.ckpt").code == 0
    assert not (tmp_path / "S/test.json").exists()
    assert "neither a file nor a checkpoint of R" in cnnlab("test", "R", "--ckpt_path", "lst").err
    first = tmp_path / "first.ckpt"
    first.write_bytes((tmp_path / "R/checkpoints/last.ckpt").read_bytes())
    assert cnnlab("resume", "R", "--trainer.max_epochs", "3").code == 0
    assert cnnlab("resume", "R", "--ckpt_path", first, "--trainer.max_epochs", "4").code == 0
    steps = [int(line.split(",")[0]) for line in (tmp_path / "R/metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(32))
    assert cnnlab("resume", "R", "--run", "T").code == 2
    assert (tmp_path / "S/config.yaml").read_bytes() == before


def test_a_loss_that_is_not_a_number_says_so(fit: Cnnlab) -> None:
    result = fit("--model.lr", "1e30", "--model.optimizer", "sgd")
    assert result.code == 2
    assert "is not a finite number" in result.err
    assert "Traceback" not in result.err


def test_other_classes_than_the_checkpoints_are_refused(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs", "1").code == 0
    result = cnnlab("test", "R", "--data.dataset", "FashionMNIST", "--run", "T")
    assert result.code == 2
    assert "but the checkpoint's is ['0'" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cnnlab", "res"], ["resume"]),
        (["cnnlab", "fit", "--config", "mnist_"], ["mnist_fast"]),
        (["cnnlab", "fit", "--trainer.max_e"], ["--trainer.max_epochs"]),
        (["cnnlab", "resume", "R", "--callbacks.em"], ["--callbacks.ema"]),
        (["cnnlab", "fit", "--data.deg"], ["--data.degrees"]),
        (["cnnlab", "test", "pho"], ["photo.jpg"]),
        (["cnnlab", "fit", "-c", "pho"], ["photo.jpg"]),
    ],
)
def test_completion_completes(completion_script: Path, words: list[str], expected: list[str]) -> None:
    quoted = " ".join(words)
    last = f"COMP_CWORD={len(words) - 1}; COMP_LINE='{quoted}'; COMP_POINT=${{#COMP_LINE}}"
    code = f'source {completion_script}; COMP_WORDS=({quoted}); {last}; _shtab_cnnlab; echo "${{COMPREPLY[@]}}"'
    folder = completion_script.parent
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert set(expected) <= set(done.stdout.split())
    assert all(found.startswith(words[-1]) for found in done.stdout.split())


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.with_name("photo.jpg").touch()
    done = subprocess.run(command("completion", "bash"), capture_output=True, text=True, check=True)
    path.write_text(done.stdout)
    return path


def test_what_is_not_there_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """A wrong name of a run was answered after the seconds that torch and lightning take to import."""
    code = "import sys; from cnnlab.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for words in (
        ["test", "nowhere"],
        ["predict", "nowhere", "--data.batch_size", "4"],
        ["resume", "nowhere"],
        ["fit", "--config", "nothing"],
        ["fit", "--config", "image_folder", "--data.root", "nowhere"],
        ["fit", "--config=detection", "--data.root=nowhere"],
        ["fit", "--config", "segmentation", "--data.root", ".", "--data.csv", "nowhere.csv"],
        ["fit", "-c", "instances", "--data.root", ".", "--data.root", "nowhere"],
        ["fit", "--config", "mnist", "--data", "cnnlab.data.ImageFolder", "--data.root", "nowhere"],
        ["slurm", "status", "nowhere"],
        ["slurm", "--nodes", "none", "--", "fit", "--config", "nothing"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["2", "False"], done.stderr
        assert "nowhere" in done.stderr or "nothing" in done.stderr or "none" in done.stderr


def test_training_imports_neither_timm_nor_wandb_before_they_are_needed() -> None:
    """Timm takes a second, and imports wandb, whose temporary folder a forked process would share."""
    code = "import sys, cnnlab.commands.training; print([name for name in ('timm', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_data_that_must_be_there_are_known_without_torch() -> None:
    kinds = [kind for name in data.__all__ if isinstance(kind := getattr(data, name), type)]
    names = {kind.__name__ for kind in kinds if issubclass(kind, ListedFiles)}
    # Two are bases; a table may name files elsewhere; Shapes draws its images.
    others = {"FileDataModule", "CenterCropDataModule", "ValueTable", "Shapes"}
    assert {path.rpartition(".")[2] for path in OF_FILES} == names - others


@pytest.mark.parametrize(("before", "frozen"), [("", True), ("import torch; ", False)])
def test_only_the_imports_of_a_process_s_command_are_frozen(before: str, frozen: bool) -> None:
    """A process that ran many commands kept what each of them had left, gigabytes after a while."""
    code = f"{before}import gc; from cnnlab.cli import main; main(['analyze', 'no_network'])"
    code += "; print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout.split()[-1]) > 100_000) == frozen
    assert "no_network" in done.stderr
