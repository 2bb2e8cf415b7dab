"""cnnlab prune."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cnnlab.checkpoint import read_checkpoint, takes
from cnnlab.checkpoint_io import write_checkpoint
from cnnlab.commands.loading import load_cnnlab_run
from cnnlab.commands.messages import say, summary
from cnnlab.commands.options import CommandParser
from cnnlab.commands.processes import run_cnnlab
from cnnlab.data import VisionDataModule
from cnnlab.deploy.benchmark import timed
from cnnlab.deploy.export import Pipeline, torch_predict
from cnnlab.deploy.prune import prune_channels, prune_weights
from cnnlab.deploying import example_images, pipeline, score
from cnnlab.errors import CnnlabError, InputError
from cnnlab.lock import locked
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.writing import write_atomically, write_json
from cnnlab.yaml_text import dump_yaml, load_yaml

_UNFINISHED = ".pruning"
"""The file in a new run's folder until it is finished."""


def prune(command: str, arguments: list[str]) -> None:
    """Prune a run's network, train it further in a new run, and measure both.

    Raises:
        InputError: If a value is out of range, the run cannot be loaded or pruned, or the new run's folder has files.
        CnnlabError: If the training stops with an error.
    """
    asked, flags = (parser := _parser()).parse_with_others(arguments)
    if own := next((flag for flag in flags if flag.split("=")[0] in ("--run", "--resume")), None):
        raise parser.unknown(own)
    _check(asked, flags)
    task, data, source, checkpoint = load_cnnlab_run(asked.run, flags, "fit")
    if not source.config.is_file():
        raise InputError(f"{asked.run} lies in no run's folder, whose config.yaml would say how to train on")
    if not takes(type(task), "pruned"):
        raise InputError(f"{type(task).__name__} takes no argument pruned, which says what its network lacks")
    folder = source.folder.absolute()
    run = Run(Path(asked.out) if asked.out is not None else folder.with_name(f"{folder.name}-pruned"))
    if run.exists() and not (run.folder / _UNFINISHED).is_file():
        raise InputError(f"{run.folder} exists already, and is not overwritten: choose another folder with --out")
    try:
        with locked(run.folder):
            _discard_unfinished(run)
            _prune_and_train(asked, flags, task, data, source, checkpoint, run)
            (run.folder / _UNFINISHED).unlink()
    finally:
        if not run.exists():
            (run.folder / _UNFINISHED).unlink(missing_ok=True)
            run.discard_if_empty()


def _discard_unfinished(run: Run) -> None:
    """Remove what an earlier pruning has left that was interrupted: it would start from files that are gone."""
    mark = run.folder / _UNFINISHED
    if run.exists():
        say(f"{run.folder} was left by a pruning that was interrupted: it is removed, and the pruning starts again")
        for path in run.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (".lock", mark.name):
                path.unlink()
    mark.write_text("cnnlab prune has not finished this run\n", encoding="utf-8")


def _prune_and_train(
    asked: argparse.Namespace,
    flags: list[str],
    task: VisionTask,
    data: VisionDataModule,
    source: Run,
    checkpoint: Path,
    run: Run,
) -> None:
    """Prune and train round by round, measure before and after, and write the result."""
    plain = pipeline(task)
    before = score(task, data, torch_predict(plain))
    with tempfile.TemporaryDirectory(prefix="cnnlab-prune-") as scratch:
        for step in range(1, asked.rounds + 1):
            options = _pruned(asked, task, data, checkpoint, step, Path(scratch))
            say(f"round {step} of {asked.rounds}: {_size(task)}")
            trained = run if step == asked.rounds else Run(Path(scratch) / f"round-{step}")
            _train(source, data, options, trained, asked, flags)
            task, data, _, checkpoint = load_cnnlab_run(str(trained.folder), flags, "fit")
    said = {
        "method": asked.method,
        "share": asked.share,
        "rounds": asked.rounds,
        "epochs": asked.epochs,
        "parameters": {"before": _count(plain.network), "after": _count(task.network)},
        "zeros": {"before": _zeros(plain.network), "after": _zeros(task.network)},
        "metric": {
            "name": task.monitor,
            "images": len(data.val_set),
            "before": before,
            "after": score(task, data, torch_predict(pipeline(task))),
        },
        "milliseconds": _times({"before": plain, "after": pipeline(task)}, task, data),
        "threads": torch.get_num_threads(),
        "from": {"run": str(source.folder)},
    }
    write_json(run.pruning, said)
    summary(f"run {run.folder}", {**_rows(said), "details": run.pruning, "next": f"cnnlab test {run.folder}"})


def _times(pipelines: dict[str, Pipeline], task: VisionTask, data: VisionDataModule) -> dict[str, dict[str, float]]:
    """Return medians in milliseconds by batch size; many large images at once might not fit into memory."""
    found = {}
    for size in (1,) if task.output.dense else (1, 32):
        batch = example_images(task, data, size).numpy()
        times = timed({name: partial(torch_predict(network), batch) for name, network in pipelines.items()})
        found[str(size)] = {name: round(timing.median, 3) for name, timing in times.items()}
    return found


def _check(asked: argparse.Namespace, flags: list[str]) -> None:
    if any(flag.split("=")[0] == "--ckpt_path" for flag in flags):
        raise InputError("prune begins with the best checkpoint of a run: leave out --ckpt_path")
    if not 0 < asked.share < 1:
        raise InputError(f"--share is {asked.share:g}, expected above 0, below 1")
    for name in ("rounds", "epochs"):
        if getattr(asked, name) < 1:
            raise InputError(f"--{name} is {getattr(asked, name)}, expected 1 or more")


def _pruned(
    asked: argparse.Namespace, task: VisionTask, data: VisionDataModule, checkpoint: Path, step: int, folder: Path
) -> list[str]:
    """Prune a task and write the start of the training; return the options of fit that load it."""
    removed = list(task.hparams["pruned"] or [])
    options: list[str] = []
    if asked.method == "structured":
        # In each round, the same share of the remaining weights or channels.
        share = 1 - (1 - asked.share) ** (1 / asked.rounds)
        example = task.standardize(example_images(task, data)[:2])
        removed += prune_channels(task.network, example, share, asked.everywhere)
    else:
        prune_weights(task.network, asked.share * step / asked.rounds)
        options = ["--callbacks.sparsity", "true"]
    content = read_checkpoint(checkpoint)
    content["state_dict"] = task.state_dict()
    content["hyper_parameters"]["pruned"] = removed
    for name in ("optimizer_states", "lr_schedulers", "callbacks", "loops"):
        content.pop(name, None)
    start, overlay = folder / f"start-{step}.ckpt", folder / f"pruned-{step}.yaml"
    write_checkpoint(content, start)
    write_json(overlay, {"model": {"init_args": {"pruned": removed}}})
    return ["--config", str(overlay), "--model.init_from", str(start), *options]


def _train(
    source: Run, data: VisionDataModule, options: list[str], run: Run, asked: argparse.Namespace, flags: list[str]
) -> None:
    """Train the pruned network, with the same images for validation."""
    options = [*options, "--trainer.max_epochs", str(asked.epochs), "--run", str(run.folder)]
    if source.manifest.is_file() and takes(type(data), "splits"):
        options += ["--data.splits", str(source.manifest.absolute())]
    if asked.lr is not None:
        options += ["--model.lr", str(asked.lr)]
    if status := run_cnnlab("fit", "--config", str(source.config), *options, *flags):
        error = CnnlabError(f"the training stopped (see above), and with it the pruning of {source.folder}")
        error.exit_code = status
        raise error
    # The run has its own weights and list of images; the files that it started from are about to be deleted.
    config = load_yaml(run.config.read_text(encoding="utf-8"))
    config["model"]["init_args"]["init_from"] = None
    if "splits" in config["data"]["init_args"]:
        config["data"]["init_args"]["splits"] = None
    write_atomically(run.config, dump_yaml(config).encode())


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _zeros(network: torch.nn.Module) -> int:
    return sum(int((parameter == 0).sum()) for parameter in network.parameters())


def _size(task: VisionTask) -> str:
    count, zeros = _count(task.network), _zeros(task.network)
    return f"{count:,} parameters" + (f", {zeros:,} of them zero" if zeros else "")


def _rows(said: dict[str, Any]) -> dict[str, object]:
    parameters, metric = said["parameters"], said["metric"]
    rows: dict[str, object] = {
        "parameters": f"{parameters['after']:,} (before: {parameters['before']:,})",
        metric["name"]: f"{metric['after']:.6g} (before: {metric['before']:.6g}), {metric['images']:,} images",
    }
    if said["method"] == "unstructured":
        rows["zeros"] = f"{said['zeros']['after']:,}"
    for size, found in said["milliseconds"].items():
        faster = found["before"] / found["after"]
        rows[f"batch of {size}"] = (
            f"{found['after']:.3g} ms (before: {found['before']:.3g}; {faster:.2f} times as fast)"
        )
    return rows


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab prune",
        description="Remove the weakest channels of the best network of a run, and all that depends on them, and train "
        "what is left with the run's own configuration, in a run of its own. Other flags are those of fit.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--share", type=float, default=0.5, help="of each layer's channels, or of all weights (0.5)")
    parser.add_argument(
        "--method",
        default="structured",
        choices=["structured", "unstructured"],
        help="unstructured: set single weights to zero, which makes nothing faster but compresses well",
    )
    parser.add_argument("--everywhere", action="store_true", help="let the channels of all layers compete")
    parser.add_argument("--rounds", type=int, default=1, help="prune and train so often, to the share in the end (1)")
    parser.add_argument("--epochs", type=int, default=3, help="how long to train in each round (3)")
    parser.add_argument("--lr", type=float, help="instead of the run's own learning rate")
    parser.add_argument("--out", metavar="DIR", help="the new run's folder (RUN-pruned)")
    return parser
