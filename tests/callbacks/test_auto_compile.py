"""--model.compile auto: when it compiles, what it says, and that a resumed run does the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnlab.callbacks import AutoCompile, auto_compile
from cnnlab.tasks import VisionTask
from tests.callbacks.test_auto_precision import QUIET
from tests.conftest import Cnnlab

AUTO = ["--model.compile", "auto", "--trainer.max_epochs", "6", *QUIET]
"""48 steps: 5 and 20 uncompiled, 3 and 20 compiled."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[str]]:
    """Let a step take so many seconds uncompiled and compiled, and compiling 71; returns what was done."""

    def set_seconds(plain: float, compiled: float) -> list[str]:
        done: list[str] = []
        now = [0.0]

        class Timed(AutoCompile):
            def __init__(self) -> None:
                super().__init__(lambda: now[0])

        def compile_it(network: Any) -> None:
            done.append("compile")
            now[0] += 71.0

        def step(task: VisionTask, *arguments: Any) -> Any:
            now[0] += compiled if done[-1:] == ["compile"] else plain
            return training_step(task, *arguments)

        training_step = VisionTask.training_step
        monkeypatch.setattr("cnnlab.callbacks.AutoCompile", Timed)
        monkeypatch.setattr(auto_compile, "compile_if_possible", compile_it)
        monkeypatch.setattr(auto_compile, "uncompile", lambda network: done.append("uncompile"))
        monkeypatch.setattr(VisionTask, "training_step", step)
        return done

    return set_seconds


def test_a_long_run_is_compiled_and_told_when_that_pays(
    fit: Cnnlab, tmp_path: Path, machine: Callable[[float, float], list[str]]
) -> None:
    """Users compiled runs of minutes, and waited longer for the compiler than it saved."""
    done = machine(80.0, 79.5)
    result = fit(*AUTO)
    assert result.code == 0, result.err
    said = "on: it took 70 s and saves 500 ms a step: pays after 141 steps; this run has 0 left"
    assert f"compile: {said}" in result.out
    assert json.loads((tmp_path / "R/environment.json").read_text())["compile"] == said
    assert done == ["compile"]


def test_what_saves_nothing_is_undone(fit: Cnnlab, machine: Callable[[float, float], list[str]]) -> None:
    """Where the images arrive more slowly than the network takes them, for example."""
    done = machine(80.0, 80.0)
    assert "compile: off: it took 71 s and saves nothing" in fit(*AUTO).out
    assert done == ["compile", "uncompile"]


def test_a_short_run_is_not_compiled(fit: Cnnlab, machine: Callable[[float, float], list[str]]) -> None:
    done = machine(20.0, 1.0)
    assert "compile: off: 8 minutes of training are left, too few to pay for it" in fit(*AUTO).out
    assert not done


@pytest.mark.parametrize("step", [16, 28])
def test_a_resumed_run_compiles_where_the_run_would_have(
    fit: Cnnlab, cnnlab: Cnnlab, machine: Callable[[float, float], list[str]], step: int
) -> None:
    """Stopped before the step at which it compiles, and after: compiled networks round differently."""
    done = machine(90.0, 80.0)
    stop = ("--trainer.callbacks", "tests.callbacks.test_auto_precision.Stop", "--trainer.callbacks.at", str(step))
    assert fit(*AUTO, *stop).code == 143
    before = ["compile"] if step == 28 else []
    assert done == before
    result = cnnlab("resume", "R", "--trainer.callbacks", "[]")
    assert result.code == 0, result.err
    assert done == [*before, "compile"]
    assert ("compile: on, as before the run was stopped" in result.out) == (step == 28)
