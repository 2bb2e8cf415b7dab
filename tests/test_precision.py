"""Which precision is chosen, for devices that need not be here."""

from __future__ import annotations

import pytest
import torch

from cnnlab import precision
from cnnlab.precision import Device, Trial, choose, float32_hint


def never() -> str:
    raise AssertionError("a GPU's capability tells the precision: no steps are tried")


@pytest.mark.parametrize(
    ("name", "capability", "bf16", "chosen"),
    [
        ("H100", (9, 0), True, "bf16-mixed"),
        ("A100", (8, 0), True, "bf16-mixed"),
        ("GeForce RTX 3090", (8, 6), True, "bf16-mixed"),
        ("T4", (7, 5), False, "16-mixed"),
        ("V100", (7, 0), False, "16-mixed"),
        ("P100", (6, 0), False, "32-true"),
        ("GeForce GTX 1080", (6, 1), False, "32-true"),
    ],
)
def test_a_gpu_gets_the_precision_that_it_computes_in(
    name: str, capability: tuple[int, int], bf16: bool, chosen: str
) -> None:
    choice = choose(Device("cuda", name, capability, bf16), never)
    assert choice.precision == chosen
    assert choice.float32_matmul is None
    assert name in choice.reason
    assert f"{capability[0]}.{capability[1]}" in choice.reason


def test_a_strategy_that_knows_no_such_precision_is_not_given_it() -> None:
    """Lightning's ModelParallelStrategy refuses 16-mixed."""
    assert choose(Device("cuda", "T4", (7, 5)), never, ("bf16-mixed",)).precision == "32-true"
    plain = choose(Device("cuda", "A100", (8, 0), True), never, ())
    assert (plain.precision, plain.float32_matmul) == ("32-true", "high")


def test_a_processor_gets_bf16_where_the_network_gains_a_tenth() -> None:
    device = Device("cpu", bf16=True)
    assert choose(device, lambda: Trial(0.111, 0.100, 8)).precision == "bf16-mixed"
    slower = choose(device, lambda: Trial(0.109, 0.100, 8))
    assert (slower.precision, slower.reason) == (
        "32-true",
        "bf16-mixed is only 1.09x as fast here (100 and 109 ms a step of 8 images)",
    )
    assert choose(device, lambda: "too few steps") == ("32-true", "too few steps", None)


@pytest.mark.parametrize("device", [Device("cpu"), Device("mps"), Device("xla")])
def test_other_devices_stay_in_full_precision_without_a_trial(device: Device) -> None:
    assert choose(device, never).precision == "32-true"


def test_a_gpu_of_this_machine_is_asked_for_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without emulation: torch also says yes to bf16 on GPUs that compute it slowly."""
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.random.fork_rng([]))
    assert Device.of(torch.device("cuda:0")) == Device("cuda", "T4", (7, 5), False)
    assert asked == [False]


def test_a_processor_of_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    assert Device.of(torch.device("cpu")) == Device("cpu", bf16=True)
    assert Device.of(torch.device("mps")) == Device("mps")


def test_a_run_in_float32_is_told_what_its_gpu_could_do() -> None:
    ampere = Device("cuda", "A100", (8, 0), True)
    assert "--trainer.float32_matmul_precision high" in float32_hint(ampere, "32-true")[0]
    assert float32_hint(ampere, "bf16-mixed") == []
    assert float32_hint(Device("cuda", "T4", (7, 5)), "32-true") == []
    assert float32_hint(Device("cpu", bf16=True), "32-true") == []
