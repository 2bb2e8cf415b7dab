"""cnnlab prune."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cnnlab.checkpoint import AtomicCheckpointIO, read_checkpoint
from cnnlab.commands.making import make_own
from cnnlab.commands.messages import say, summary
from cnnlab.data import VisionDataModule
from cnnlab.deploy.export import torch_predict
from cnnlab.deploy.prune import prune_channels, prune_weights
from cnnlab.deploy.timing import timed
from cnnlab.deploying import pipeline, score, validation_images
from cnnlab.errors import CnnlabError, InputError
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.writing import write_json

_BATCHES = (1, 32)


def prune(command: str, arguments: list[str]) -> None:
    """Make a run's network smaller, train it on in a run of its own, and measure both.

    Raises:
        InputError: If there is something to mend.
    """
    asked, flags = _parser().parse_known_args(arguments)
    _check(asked)
    task, data, source, checkpoint = make_own(asked.run, flags, "fit")
    if not source.config.is_file():
        raise InputError(f"{asked.run} lies in no run's folder, whose config.yaml would say how to train on")
    run = Run(Path(asked.out) if asked.out is not None else source.folder.with_name(f"{source.folder.name}-pruned"))
    if run.exists():
        raise InputError(f"{run.folder} exists already, and is not overwritten: choose another folder with --out")
    before, plain = score(task, data, torch_predict(pipeline(task))), pipeline(task)
    with tempfile.TemporaryDirectory(prefix="cnnlab-prune-") as scratch:
        for step in range(1, asked.rounds + 1):
            started = _pruned(asked, task, data, checkpoint, step, Path(scratch))
            say(f"round {step} of {asked.rounds}: {_size(task)}")
            last = step == asked.rounds
            trained = run if last else Run(Path(scratch) / f"round-{step}")
            _train(source, started, trained, asked, flags)
            task, data, _, checkpoint = make_own(str(trained.folder), flags, "fit")
    after = score(task, data, torch_predict(pipeline(task)))
    images = validation_images(data, max(_BATCHES))
    images = images.repeat(-(-max(_BATCHES) // len(images)), 1, 1, 1)
    times = {
        size: timed(
            {
                name: partial(torch_predict(network), images[:size].contiguous().numpy())
                for name, network in (("before", plain), ("after", pipeline(task)))
            }
        )
        for size in _BATCHES
    }
    said = {
        "method": asked.method,
        "share": asked.share,
        "rounds": asked.rounds,
        "epochs": asked.epochs,
        "parameters": {"before": _count(plain.network), "after": _count(task.network)},
        "zeros": {"before": _zeros(plain.network), "after": _zeros(task.network)},
        "metric": {"name": task.monitor, "images": len(data.val_set), "before": before, "after": after},
        "milliseconds": {
            str(size): {name: round(t.median, 3) for name, t in found.items()} for size, found in times.items()
        },
        "threads": torch.get_num_threads(),
        "from": {"run": str(source.folder)},
    }
    write_json(run.pruning, said)
    summary(f"run {run.folder}", {**_rows(said), "details": run.pruning, "next": f"cnnlab test {run.folder}"})


def _check(asked: argparse.Namespace) -> None:
    if not 0 < asked.share < 1:
        raise InputError(f"--share is {asked.share:g}, expected above 0, below 1")
    for name in ("rounds", "epochs"):
        if getattr(asked, name) < 1:
            raise InputError(f"--{name} is {getattr(asked, name)}, expected 1 or more")


def _pruned(
    asked: argparse.Namespace, task: VisionTask, data: VisionDataModule, checkpoint: Path, step: int, folder: Path
) -> dict[str, Path]:
    """Prune a task, and write what the training starts from."""
    content = read_checkpoint(checkpoint)
    paths = {"weights": folder / f"start-{step}.ckpt"}
    if asked.method == "structured":
        # In each round the same share of what is left.
        share = 1 - (1 - asked.share) ** (1 / asked.rounds)
        example = task.standardize(validation_images(data)[:2])
        removed = [*(task.hparams["pruned"] or []), *prune_channels(task.network, example, share, asked.everywhere)]
        content["hyper_parameters"]["pruned"] = removed
        paths["pruned"] = folder / f"pruned-{step}.json"
        paths["pruned"].write_text(json.dumps(removed), encoding="utf-8")
    else:
        prune_weights(task.network, asked.share * step / asked.rounds)
    content["state_dict"] = task.state_dict()
    for name in ("optimizer_states", "lr_schedulers", "callbacks", "loops"):
        content.pop(name, None)
    AtomicCheckpointIO().save_checkpoint(content, paths["weights"])
    return paths


def _train(source: Run, started: dict[str, Path], run: Run, asked: argparse.Namespace, flags: list[str]) -> None:
    """Train on, in a process of its own."""
    options = ["--config", str(source.config), "--model.init_from", str(started["weights"])]
    options += ["--trainer.max_epochs", str(asked.epochs), "--run", str(run.folder)]
    if "pruned" in started:
        options += ["--model.pruned", str(started["pruned"])]
    else:
        options += ["--callbacks.sparsity", "true"]
    if asked.lr is not None:
        options += ["--model.lr", str(asked.lr)]
    done = subprocess.run([sys.executable, "-m", "cnnlab", "fit", *options, *flags], check=False)
    if done.returncode:
        error = CnnlabError(f"the training of {run.folder} stopped (see above); what was trained is kept there")
        error.exit_code = done.returncode
        raise error


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnlab prune",
        allow_abbrev=False,
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
