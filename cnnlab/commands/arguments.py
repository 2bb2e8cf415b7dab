"""Processing of a command line before LightningCLI parses it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from cnnlab import recipes, tree
from cnnlab.errors import InputError
from cnnlab.migration import modern_config, modern_flags
from cnnlab.run import Run, choose, find, global_rank, is_restarted_job
from cnnlab.yaml_text import load_yaml

_TAKE_CLASSES = r"--(model|data|callbacks\.\w+|trainer\.(callbacks|logger|plugins|strategy|profiler))"
"""The flags whose value may be the import path of a class."""

_SHORT = ("--conf", "--format")
"""Options of predict that stand for arguments of its table."""


@dataclass
class Request:
    """A command line, split into its parts."""

    command: str
    """fit, validate, test or predict."""
    target: str | None = None
    """The run's folder or checkpoint given as the first argument."""
    configs: list[str] = field(default_factory=list)
    """The --config files in order, with recipes resolved to paths."""
    flags: list[str] = field(default_factory=list)
    """All other arguments."""
    run: str | None = None
    """--run."""
    resume: str = "never"
    """--resume."""
    ckpt_path: str | None = None
    """--ckpt_path."""

    @property
    def recipe(self) -> str:
        """Return what a new run is named after: the first --config."""
        return Path(self.configs[0]).stem if self.configs else self.command

    @property
    def options(self) -> list[str]:
        """The configurations and flags, as arguments."""
        return [part for config in self.configs for part in ("--config", config)] + self.flags

    @property
    def asks_only(self) -> bool:
        """Whether the command line only prints something, and runs nothing."""
        return any(flag.split("=")[0] in ("-h", "--help", "--print_config") for flag in self.flags) or any(
            flag.startswith("--print_") or flag.endswith(".help") or ".help=" in flag for flag in self.flags
        )


def parse_request(command: str, arguments: list[str]) -> Request:
    """Split a command line into its parts.

    Raises:
        InputError: If an option lacks its value or has an unknown one, or if a recipe does not exist.
    """
    return _split(command, modern_flags(arguments))


def _split(command: str, arguments: list[str]) -> Request:
    request, rest = Request(command), list(arguments)
    if rest and not rest[0].startswith("-"):
        request.target = rest.pop(0)
        if command == "predict" and rest and not rest[0].startswith("-"):
            request.flags += ["--data.predict", rest.pop(0)]
            if rest and not rest[0].startswith("-"):
                raise InputError(
                    f"predict takes one image or one folder, and {rest[0]!r} is another: name their folder"
                )
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if command == "predict" and name in _SHORT:
            name = f"--callbacks.predictions.{name.removeprefix('--')}"
        if name not in ("--config", "-c", "--run", "--resume", "--ckpt_path"):
            request.flags.append(name + equals + value)
            continue
        if not equals:
            if not rest:
                raise InputError(f"{name} lacks its value")
            value = rest.pop(0)
        if name in ("--config", "-c"):
            request.configs.append(_readable(recipes.resolve(value)))
        else:
            setattr(request, name.removeprefix("--"), value)
    if request.resume not in ("never", "auto"):
        raise InputError(f"--resume is {request.resume!r}, expected never or auto")
    return request


OF_FILES = tuple(f"cnnlab.data.{name}" for name in ("BoxFolder", "ImageFolder", "InstanceFolder", "MaskFolder"))
"""Data that are read from the folder data.root; others may make it."""


def check_places(command: str, arguments: list[str]) -> None:
    """Check at once what needs no library: whether recipes, configurations, the run and the data's files exist.

    Raises:
        InputError: If one does not.
    """
    request = _split(command, arguments)
    target = None if command == "fit" or request.resume != "never" else request.target
    if target is not None and not Path(target).exists():
        find(target)
    classes = class_paths_of("data", request.options)
    if command != "fit" or request.asks_only or not classes or classes[-1] not in OF_FILES:
        return
    table, root = (_last("--data." + name, request.flags) for name in ("csv", "root"))
    if table is not None and not Path(table).expanduser().exists():
        raise InputError(f"data.csv {table}: there is no such file")
    if root is not None and table is None and not tree.exists(Path(root).expanduser()):
        raise InputError(f"there is no folder {root}: name the one that holds your images with --data.root")


def _last(name: str, flags: list[str]) -> str | None:
    """The value of an option; the last one counts."""
    found: list[str] = []
    value, rest = take_option(name, flags)
    while value is not None:
        found.append(value)
        value, rest = take_option(name, rest)
    return found[-1] if found else None


def take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Remove an option with its value from a command line.

    >>> take_option("--out", ["R", "--out", "f.png", "--data.size=32"])
    ('f.png', ['R', '--data.size=32'])
    """
    rest = list(arguments)
    for i, argument in enumerate(rest):
        key, equals, value = argument.partition("=")
        if key != name:
            continue
        if not equals and i + 1 == len(rest):
            raise InputError(f"{name} lacks its value")
        taken = 1 if equals else 2
        return (value if equals else rest[i + 1]), rest[:i] + rest[i + taken :]
    return None, rest


def class_paths_of(room: str, arguments: list[str]) -> list[str]:
    """Return the import paths of the classes of model or data in a command line, from flags and configurations.

    >>> class_paths_of("data", ["fit", "--config", '{"data": {"class_path": "own.A"}}', "--data", "own.B"])
    ['own.A', 'own.B']
    """
    paths: list[Any] = []
    for name, value in pairwise([*arguments, ""]):
        key, equals, own = name.partition("=")
        value = own if equals else value
        if key == "--config":
            section = _content(value).get(room)
            paths.append(section.get("class_path") if isinstance(section, dict) else section)
        elif key in (f"--{room}", f"--{room}.class_path"):
            paths.append(value)
    return [path for path in paths if isinstance(path, str) and "." in path]


def all_class_paths(arguments: list[str]) -> list[str]:
    """Return the import paths of all classes in a command line: of model, data, callbacks, loggers and the like.

    >>> all_class_paths(["fit", "--trainer.callbacks+=own.A", "--config", '{"data": {"class_path": "own.B"}}'])
    ['own.A', 'own.B']
    """
    paths: list[str] = []
    for name, value in pairwise([*arguments, ""]):
        key, equals, own = name.partition("=")
        value, key = own if equals else value, key.removesuffix("+")
        if key == "--config":
            paths += _class_paths_in(_content(value))
        elif key.endswith(".class_path") or re.fullmatch(_TAKE_CLASSES, key):
            paths.append(value)
    return [path for path in dict.fromkeys(paths) if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", path)]


def _class_paths_in(content: Any, key: str = "") -> list[str]:
    if isinstance(content, dict):
        return [path for name, value in content.items() for path in _class_paths_in(value, name)]
    if isinstance(content, list):
        return [path for value in content for path in _class_paths_in(value, key)]
    return [content] if key in ("class_path", "model", "data") and isinstance(content, str) else []


def config_flags(configs: Iterable[str]) -> list[str]:
    """Return the flags that pass configurations to LightningCLI; old ones are passed as text with current names."""
    flags = []
    for config in configs:
        content = _content(config)
        modern = modern_config(content)
        flags += ["--config", config if modern is content else json.dumps(modern)]
    return flags


def _content(config: str) -> dict[str, Any]:
    text = config if config.startswith("{") else Path(config).read_text(encoding="utf-8")
    content: dict[str, Any] = load_yaml(text) or {}
    return content


def _readable(config: str) -> str:
    """Check that a file is YAML with keys, and return its name; jsonargparse would not say which of several is not."""
    try:
        content = load_yaml(Path(config).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {config} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {config} holds no keys: expected a configuration such as cnnlab recipes lists")
    return config


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of a checkpoint, without its weights."""

    step: int
    """Number of optimizer steps so far."""
    model: dict[str, Any]
    """The task's hyperparameters, including those that the data gave."""
    data: dict[str, Any]
    """The data module's hyperparameters."""
    config: dict[str, Any]
    """The configuration that creates the task and its data again."""
    path: Path
    """The file."""
    manifest: Path
    """Where its run lists the image files that it was trained on; the file may be missing."""


@dataclass(frozen=True)
class Plan:
    """What to run: the run, LightningCLI's arguments, and the checkpoint, if any."""

    run: Run
    arguments: list[str]
    checkpoint: CheckpointInfo | None = None
    recipe: str | None = None
    """The first --config."""


def plan(request: Request) -> Plan:
    """Choose the run's folder and checkpoint, and put the configurations in their order of precedence.

    A flag overrides a --config, a --config overrides the run's own config.yaml, and this overrides the checkpoint.

    Raises:
        InputError: If the command does not fit the folder: a new run in an existing one, or nothing to resume or test.
    """
    command = "fit" if request.command == "resume" else request.command
    plans = {"fit": _plan_fit, "resume": _plan_resume}
    run, checkpoint, own = plans.get(request.command, _plan_evaluation)(request)
    bases = []
    kept = None
    if checkpoint is not None:
        try:
            kept = _read(checkpoint)
        except InputError:
            run.discard_if_empty()
            raise
        bases.append(json.dumps(kept.config))
        if own is not None and own.is_file():
            bases.append(str(own))
    arguments = config_flags(bases + request.configs)
    if checkpoint is not None:
        arguments += ["--ckpt_path", str(checkpoint)]
    recipe = request.configs[0] if request.configs else None
    return Plan(run, [command, *arguments, *request.flags], kept, recipe)


def _plan_resume(request: Request) -> tuple[Run, Path | None, Path | None]:
    if request.target is None:
        if request.asks_only:
            return Run(Path()), None, None
        raise InputError("resume needs a run: cnnlab resume RUN, where RUN is a run's folder")
    if request.run is not None or request.resume != "never":
        raise InputError("resume goes on in the run's own folder: leave out --run and --resume")
    found, checkpoint = find(request.target, "to_resume")
    if request.ckpt_path is not None:
        _, checkpoint = find(request.ckpt_path)
    if found is None:
        raise InputError(
            f"{request.target} lies in no run's folder: to train on from it in a new run, "
            f"cnnlab fit --ckpt_path {request.target}"
        )
    if not found.config.is_file():
        raise InputError(f"run {found.folder} has no config.yaml, so nothing says how it was trained")
    # Processes that this one starts must use the same folder.
    choose(str(found.folder), request.recipe)
    return found, checkpoint, found.config


def _plan_fit(request: Request) -> tuple[Run, Path | None, Path | None]:
    if request.target is not None:
        raise InputError(
            f"fit takes no run or file ({request.target!r}): to go on with a run, cnnlab resume {request.target}; "
            f"for a recipe, --config {request.target}"
        )
    if request.asks_only:
        return Run(Path()), None, None
    started_from = find(request.ckpt_path)[1] if request.ckpt_path is not None else None
    run = choose(request.run, request.recipe)
    go_on = request.resume == "auto" or is_restarted_job()
    # The first process decides; the others may find files that it has already written.
    if run.exists() and not go_on and global_rank() == 0:
        raise InputError(
            f"run {run.folder} exists already, and is not overwritten: to go on with it, cnnlab resume {run.folder} "
            "(or add --resume auto); for a new run, choose another --run"
        )
    if go_on and (run.last.is_file() or run.best.is_file()):
        return run, run.to_resume(), None if request.configs else run.config
    return run, started_from, None


def _plan_evaluation(request: Request) -> tuple[Run, Path | None, Path | None]:
    if request.resume != "never":
        raise InputError(f"--resume is for fit, not for {request.command}")
    if request.target is not None and request.ckpt_path is not None:
        return _plan_named_checkpoint(request, Run(Path(request.target)), request.ckpt_path)
    source = request.ckpt_path or request.target or request.run
    if source is None:
        if request.asks_only:
            return Run(Path()), None, None
        raise InputError(
            f"{request.command} needs trained weights: cnnlab {request.command} RUN, where RUN is a run's folder or a "
            "checkpoint file (or --ckpt_path FILE)"
        )
    found, checkpoint = find(source)
    own = found.config if found is not None else None
    if request.run is not None:
        return Run(Path(request.run)), checkpoint, own
    return found or choose(None, f"{request.command}-{checkpoint.stem}"), checkpoint, own


def _plan_named_checkpoint(request: Request, run: Run, name: str) -> tuple[Run, Path, Path]:
    """Return a run and the checkpoint to use: a file, or the name of one of the run's checkpoints."""
    for path in (Path(name), run.checkpoints / f"{name.removesuffix('.ckpt')}.ckpt"):
        if path.is_file():
            return Run(Path(request.run)) if request.run else run, path, run.config
    raise InputError(f"--ckpt_path {name}: neither a file nor a checkpoint of {run.folder}")


def _read(path: Path) -> CheckpointInfo:
    from cnnlab.checkpoint import LINKED, read_header  # Imports torch, which check_places does without.

    checkpoint = read_header(path)
    about = checkpoint["cnnlab"]
    model, data = checkpoint.get("hyper_parameters", {}), checkpoint.get("datamodule_hyper_parameters", {})
    told = about.get("provided", LINKED)
    own = {key: value for key, value in model.items() if key not in told}
    config = {"model": {"class_path": about["task"], "init_args": own}}
    if "data" in about:
        config["data"] = {"class_path": about["data"], "init_args": data}
    if "trainer" in about:  # Not in older versions.
        config["trainer"] = about["trainer"]
    manifest = Run(path.absolute().parent.parent).manifest
    return CheckpointInfo(checkpoint["global_step"], model, data, config, path, manifest)
