"""The table of commands. Each command has a module that reads a run, calls the library, and reports the results."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command: its purpose and its function."""

    purpose: str
    """One line for the help."""
    function: str
    """module:function inside cnnlab.commands, or package.module:function."""
    raw: bool = False
    """Whether the function takes the command's name and its arguments unparsed, as commands with configurations do;
    else jsonargparse makes the arguments from the function's signature."""
    first: str | None = None
    """A function of the same arguments, which checks what it can before the other one's libraries are imported."""


def _of_runs(purpose: str) -> Command:
    """A command of LightningCLI."""
    return Command(purpose, "training:run_command", raw=True, first="arguments:check_places")


COMMANDS = {
    "fit": _of_runs("train a network: cnnlab fit --config mnist"),
    "resume": _of_runs("go on with an interrupted run: cnnlab resume RUN"),
    "validate": _of_runs("measure on the validation set: cnnlab validate RUN"),
    "test": _of_runs("measure on the test set: cnnlab test RUN"),
    "predict": _of_runs("write a table of predictions: cnnlab predict RUN"),
    "crossval": Command("train a network a fold: cnnlab crossval --config C --folds 5", "crossval:crossval", raw=True),
    "data": Command("look at training images, or check all: cnnlab data show|check --config C", "data:data", raw=True),
    "explain": Command("draw what a network looks at: cnnlab explain RUN IMAGES...", "explain:explain", raw=True),
    "export": Command("write a network as a proven ONNX file: cnnlab export RUN", "export:export", raw=True),
    "quantize": Command("the same in 8-bit integers: cnnlab quantize RUN", "quantize:quantize", raw=True),
    "prune": Command("remove channels, and train on: cnnlab prune RUN", "prune:prune", raw=True),
    "infer": Command("predict with such a file: cnnlab infer MODEL.onnx IMAGES...", "infer:infer", raw=True),
    "benchmark": Command(
        "time a network in all ways: cnnlab benchmark RUN|MODEL", "benchmark:benchmark_command", raw=True
    ),
    "analyze": Command("what a network costs and sees: cnnlab analyze MODEL", "analyze:analyze", raw=True),
    "recommend": Command(
        "which network to begin with: cnnlab recommend --data DIR", "recommend:recommend_command", raw=True
    ),
    "models": Command("list networks: cnnlab models resnet", "models:models", raw=True),
    "report": Command("write one page that shows a run, or several: cnnlab report RUN", "report:report", raw=True),
    "sync": Command("upload a run that was offline to Weights & Biases: cnnlab sync RUN", "sync:sync"),
    "slurm": Command("train on a cluster: cnnlab slurm --nodes 2 -- fit --config C", "slurm:slurm", raw=True),
    "fetch": Command("bring weights and data for machines without internet", "fetch:fetch", raw=True),
    "new": Command("lay down a project of your own: cnnlab new DIR", "new:new"),
    "recipes": Command("list the configurations that come with cnnlab", "recipes:recipes"),
    "completion": Command("print a completion script for the shell", "completion:completion"),
}
