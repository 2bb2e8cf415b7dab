"""Which layers are trained at which rate, epoch by epoch, over every schedule, interruption and number of processes."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cnnlab.callbacks import Phase, ProgressiveUnfreezing
from cnnlab.errors import InputError
from cnnlab.tasks import Classification
from cnnlab.tasks.schedules import factor as factor_of
from tests.conftest import TINY_PHOTOS, Cnnlab, Result, run_process

WITNESS = '''
"""Writes what is trained, how fast, and a hash of all parameters, at the end of each epoch, on each process."""
import hashlib, json, os, signal
from pathlib import Path
from lightning.pytorch import Callback
from cnnlab.models import layer_groups


class Witness(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        network = pl_module.network
        record = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "rates": {group["name"]: group["lr"] for group in optimizer.param_groups},
            "trained": [name for name, parameter in network.named_parameters() if parameter.requires_grad],
            "norms_in_training": [
                name
                for name, module in network.named_modules()
                if "BatchNorm" in type(module).__name__ and module.training
            ],
            "batch": hashlib.sha256(batch.images.numpy().tobytes()).hexdigest(),
            "hash": hashlib.sha256(
                b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())
            ).hexdigest(),
            "layers": {
                group.name: hashlib.sha256(
                    b"".join(parameter.detach().numpy().tobytes() for _, parameter in group.parameters_of(network))
                ).hexdigest()
                for group in layer_groups(network)
            },
            "statistics": hashlib.sha256(
                b"".join(value.numpy().tobytes() for name, value in network.named_buffers() if "running" in name)
            ).hexdigest(),
        }
        with open(f"witness{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\\n")
        if self.stop_at == trainer.global_step:
            os.kill(os.getpid(), signal.SIGTERM)
'''


def witness(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"witness{rank}.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _witness_module(tmp_path: Path) -> None:
    (tmp_path / "witnesses.py").write_text(WITNESS)


WATCH = ("--trainer.callbacks+=witnesses.Witness",)


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "constant"},
        {"schedule": "cosine", "warmup": 0.25},
        {"schedule": "onecycle"},
        {"schedule": "step"},
        {"schedule": "plateau", "warmup": 0.25, "schedule_args": {"patience": 0, "threshold": 10.0, "factor": 0.5}},
    ],
    ids=lambda schedule: str(schedule["schedule"]),
)
def test_a_groups_rate_is_its_phases_rate_times_one_factor(
    fit_photos: Cnnlab, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    """Schedules broke when parameter groups appeared half-way (Lightning-AI/pytorch-lightning#12141, #8720)."""
    overlay = tmp_path / "schedule.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"init_args": schedule}}))
    assert fit_photos("--config", overlay, *WATCH).code == 0
    records = witness(tmp_path)
    assert [record["epoch"] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
    phases = [[1e-3, 0.0, 0.0], [5e-4, 1e-4, 0.0], [5e-4, 1e-4, 1e-5]]
    sections = {"head": 0, "layer4": 1, "layer3": 1}
    factors = []
    for record in records:
        rates = phases[record["epoch"]]
        factor = record["rates"]["backbone.layer4"] / rates[1] if rates[1] else record["rates"]["head"] / rates[0]
        factors.append(factor)
        for name, rate in record["rates"].items():
            layer = name.split("/")[0].removeprefix("backbone.")
            assert rate == pytest.approx(rates[sections.get(layer, 2)] * factor, rel=1e-9), name
    assert 0 < min(factors) <= max(factors) <= 1
    if schedule["schedule"] == "constant":
        assert factors == pytest.approx([1.0] * 12)
    elif schedule["schedule"] == "plateau":
        assert factors[-1] < 0.6
    else:
        expected = factor_of(schedule["schedule"], 12, schedule.get("warmup"))
        assert factors == pytest.approx([expected(step) for step in range(12)])


def test_what_is_frozen_stays_and_its_norms_do_not_count(
    fit_photos: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Users met frozen batch norms that went on counting (Lightning#13902, #21531), or stayed so (Lightning#18951)."""
    assert fit_photos(*WATCH).code == 0
    assert "phase 1 of 3: 51,203 of 423,891 parameters are trained (12.1%)" in caplog.text
    assert "phase 3 of 3: 423,891 of 423,891 parameters are trained (100.0%)" in caplog.text
    first, second, third = (next(r for r in witness(tmp_path) if r["epoch"] == epoch) for epoch in range(3))
    assert all(name.startswith("head.") for name in first["trained"])
    assert first["norms_in_training"] == []
    assert {name.split(".")[1] for name in second["trained"] if name.startswith("backbone")} == {"layer3", "layer4"}
    assert {name.split(".")[1] for name in second["norms_in_training"]} == {"layer3", "layer4"}
    network = Classification("test_resnet", 3, head="mlp").network
    assert len(third["trained"]) == len(list(network.parameters()))
    statistics = [record["statistics"] for record in witness(tmp_path)]
    assert len(set(statistics[:5])) == 1
    assert len(set(statistics[5:])) == 7
    shares = (tmp_path / "R/metrics.csv").read_text()
    assert "train/trainable_share" in shares


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ((), (2, 5, 8, 10)),
        (
            ("--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2", "--callbacks.ema", "true",
             "--model.schedule", "plateau", "--model.warmup", "0.2"),
            (1, 2, 4, 5),
        ),
    ],
    ids=["plain", "bf16-accumulated-averaged-plateau"],
)  # fmt: skip
def test_a_run_interrupted_in_any_phase_ends_with_the_same_weights(
    fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, options: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    """Resuming failed on parameter groups added half-way (Lightning-AI/pytorch-lightning#6891, #8502)."""

    def metrics(run: str) -> list[dict[str, str]]:
        with (tmp_path / run / "metrics.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in csv.DictReader(file)]

    assert fit_photos(*options, *WATCH, "--run", "whole").code == 0
    whole = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    for step in steps:
        run = f"cut-{step}"
        stopped = fit_photos(*options, *WATCH, "--trainer.callbacks.stop_at", str(step), "--run", run)
        assert stopped.code == 143, stopped.err
        kept = torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)
        assert step < kept["global_step"] <= step + 1 < whole["global_step"] + 1
        assert cnnlab("resume", run, "--trainer.callbacks.stop_at", "null").code == 0
        resumed = torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)
        assert resumed["global_step"] == whole["global_step"]
        for name, value in whole["state_dict"].items():
            assert torch.equal(value, resumed["state_dict"][name]), (step, name)
        groups = [state["optimizer_states"][0]["param_groups"] for state in (whole, resumed)]
        assert groups[0] == groups[1]
        assert metrics(run) == metrics("whole")


@pytest.mark.slow
def test_two_processes_keep_the_same_parameters_in_every_phase(photos: Path, tmp_path: Path) -> None:
    """Parameters that were frozen when DDP wrapped the network are unknown to its reducer (Lightning#20340, #17212)."""
    done = run_process(
        "fit", "--config", TINY_PHOTOS, "--data.root", photos, "--run", "R", "--config", "trainer/ddp", *WATCH,
        "--trainer.max_epochs", "4", "--data.batch_size", "3", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = witness(tmp_path, 0), witness(tmp_path, 1)
    assert [record["hash"] for record in first] == [record["hash"] for record in second]
    assert [record["batch"] for record in first] != [record["batch"] for record in second]
    assert len({record["hash"] for record in first}) == len(first) == 16
    assert [record["layers"] for record in first] == [record["layers"] for record in second]
    # Layers by the epochs in which they have moved; the record is of the step's beginning.
    moved = {
        layer: sorted(
            {before["epoch"] for before, after in pairwise(first) if before["layers"][layer] != after["layers"][layer]}
        )
        for layer in first[0]["layers"]
    }
    assert moved["head"] == [0, 1, 2, 3]
    assert moved["backbone.layer4"] == moved["backbone.layer3"] == [1, 2, 3]
    assert moved["backbone.layer1"] == moved["backbone.conv1"] == [2, 3]


@pytest.mark.slow
def test_a_compiled_network_is_unfrozen_too(fit_photos: Cnnlab, tmp_path: Path) -> None:
    options = ("--trainer.max_epochs", "3", *WATCH)
    assert fit_photos(*options, "--run", "plain").code == 0
    assert fit_photos(*options, "--model.compile", "true", "--run", "compiled").code == 0
    plain, compiled = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("plain", "compiled")
    )
    assert list(plain) == list(compiled)
    name = "network.backbone.layer1.0.conv1.weight"
    assert torch.allclose(plain[name], compiled[name], atol=1e-4)
    records = witness(tmp_path)[12:]
    assert len(records[-1]["trained"]) > len(records[0]["trained"])


@pytest.fixture
def stalls(fit_photos: Cnnlab, tmp_path: Path) -> Cnnlab:
    """A fit whose second phase waits for the metric to stall, at rates that change nothing, so that it does."""
    overlay = tmp_path / "stall.yaml"
    phases = [{"lr": [1e-9], "epoch": 0}, {"lr": [1e-9, 1e-9], "epoch": None}]
    settings = {"phases": phases, "monitor": "val/loss", "mode": "max", "patience": 2}
    slot = {"class_path": "cnnlab.callbacks.ProgressiveUnfreezing", "init_args": settings}
    overlay.write_text(yaml.safe_dump({"callbacks": {"unfreezing": slot}}))

    def run(*flags: str | Path) -> Result:
        return fit_photos("--config", overlay, *WATCH, "--model.schedule", "constant", *flags)

    return run


def test_a_phase_may_wait_for_the_metric_to_stall(stalls: Cnnlab, tmp_path: Path) -> None:
    result = stalls("--trainer.max_epochs", "5")
    assert result.code == 0, result.err
    trained = {record["epoch"]: len(record["trained"]) for record in witness(tmp_path)}
    assert trained[0] == trained[1] == trained[2] < trained[4]


def test_a_resumed_run_has_waited_as_long_as_it_had(stalls: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert stalls("--trainer.max_epochs", "5").code == 0
    expected = [record["trained"] for record in witness(tmp_path)]
    (tmp_path / "witness0.jsonl").unlink()
    # In the third epoch: two validations of three have passed.
    stopped = stalls("--trainer.max_epochs", "5", "--trainer.callbacks.stop_at", "9", "--run", "cut")
    assert stopped.code == 143, stopped.err
    assert cnnlab("resume", "cut", "--trainer.callbacks.stop_at", "null").code == 0
    assert [record["trained"] for record in witness(tmp_path)] == expected


def test_training_that_ends_before_the_last_phase_says_so(stalls: Cnnlab) -> None:
    early = ("--callbacks.early_stopping", "true", "--callbacks.early_stopping.patience", "1")
    waits = ("--callbacks.early_stopping.min_delta", "1.0", "--trainer.max_epochs", "5")
    with pytest.warns(UserWarning, match="training ended in phase 1 of 2"):
        assert stalls(*early, *waits).code == 0


@pytest.mark.parametrize(
    ("phases", "sections", "message"),
    [
        ([], None, "phases is empty"),
        ([Phase([1e-3], 2)], None, "first begins with epoch 2"),
        ([Phase([1e-3], 0), Phase([1e-3], 3), Phase([1e-3], 2)], None, "ascending"),
        ([Phase([1e-3, 1e-4, 1e-5, 1e-6], 0)], None, "4 rates"),
        ([Phase([0.0], 0)], None, "head's above 0"),
        ([Phase([1e-3], 0)], [0], "sections"),
    ],
)
def test_phases_that_contradict_each_other_are_named(
    phases: list[Phase], sections: list[int] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ProgressiveUnfreezing(phases, sections)


def test_more_sections_than_layers_are_named(fit_photos: Cnnlab) -> None:
    result = fit_photos("--callbacks.unfreezing.sections", "[1,9]")
    assert result.code == 2
    assert "sections is [1, 9], but the network has 6 layer groups (backbone.conv1" in result.err


def test_layer_decay_makes_rates_fall_towards_the_input(fit_photos: Cnnlab, tmp_path: Path) -> None:
    options = ("--callbacks.unfreezing", "false", "--model.layer_decay", "0.5", "--model.schedule", "constant")
    assert fit_photos(*options, "--trainer.max_epochs", "1", *WATCH).code == 0
    rates = witness(tmp_path)[0]["rates"]
    assert rates["head"] == pytest.approx(1e-3)
    assert rates["backbone.layer4"] == pytest.approx(5e-4)
    assert rates["backbone.conv1/norms and biases"] == pytest.approx(1e-3 / 32)
    both = fit_photos("--model.layer_decay", "0.5", "--run", "both")
    assert both.code == 2
    assert "choose one" in both.err


def test_rates_may_fall_within_a_section_too(fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    options = ("--callbacks.unfreezing.decay", "0.5", "--model.schedule", "constant", *WATCH)
    assert fit_photos(*options, "--trainer.callbacks.stop_at", "9").code == 143
    rates = witness(tmp_path)[-1]["rates"]
    assert rates["head"] == pytest.approx(5e-4)
    assert rates["backbone.layer4"] == pytest.approx(1e-4)
    assert rates["backbone.layer3"] == pytest.approx(5e-5)
    assert [rates[f"backbone.{name}"] for name in ("layer2", "layer1", "conv1")] == pytest.approx([1e-5, 5e-6, 2.5e-6])
    changed = cnnlab("resume", "R", "--callbacks.unfreezing.decay", "0.7")
    assert changed.code == 2
    assert "the decay 0.5 and the phases" in changed.err
    with pytest.raises(InputError, match=r"decay is 0, expected above 0, to 1"):
        ProgressiveUnfreezing(decay=0)


def test_what_has_begun_cannot_be_changed_on_resuming(fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit_photos(*WATCH, "--trainer.callbacks.stop_at", "5").code == 143
    phases = '[{"epoch":0,"lr":[1.0e-3]},{"epoch":1,"lr":[5.0e-2,1.0e-4]}]'
    changed = cnnlab("resume", "R", "--callbacks.unfreezing.phases", phases)
    assert changed.code == 2
    assert "only phases that have not begun can be changed" in changed.err
    off = cnnlab("resume", "R", "--callbacks.unfreezing", "false")
    assert off.code == 2
    assert "trained with rates for each layer" in off.err


def test_a_rate_that_changes_nothing_is_said(fit_photos: Cnnlab) -> None:
    with pytest.warns(UserWarning, match=r"model\.lr is 0\.5, which changes nothing"):
        assert fit_photos("--model.lr", "0.5").code == 0
    searched = fit_photos("--callbacks.lr_finder", "true", "--run", "S")
    assert searched.code == 2
    assert "switch one of them off" in searched.err
