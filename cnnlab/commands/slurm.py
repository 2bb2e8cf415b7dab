"""cnnlab slurm."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnnlab import cluster
from cnnlab.commands.arguments import parse_request, plan, take_option
from cnnlab.commands.crossval import begin_crossval
from cnnlab.commands.loading import ConfigOnlyCLI, configure
from cnnlab.commands.messages import say, summary
from cnnlab.commands.preflight import data_setting, logs_to_wandb, look_over
from cnnlab.errors import InputError, nearest
from cnnlab.loggers import MetricsCsv
from cnnlab.models.weights import FOLDER_VARIABLE, architecture_only, prefetched_folder
from cnnlab.run import Run
from cnnlab.writing import write_atomically, write_json

_USAGE = """\
usage: cnnlab slurm [OPTIONS] -- fit --config C [OPTIONS OF fit]      (or resume, validate, test, predict)
       cnnlab slurm status RUN

Writes a job's script into the run's folder, looks for what would fail on the cluster, and submits it. Shortly before
its time is over, or when a signal comes, the run saves itself and queues up again, until it is done.

  --nodes N             machines (1)
  --gpus-per-node N     GPUs of each, a process for each (1); 0 for the CPU
  --ntasks-per-node N   processes of each, on the CPU (1)
  --cpus-per-task N     processors of each process
  --time T              how long: minutes, hours:minutes:seconds or days-hours (1-00)
  --array SEEDS         a job array, a run for each seed: 0-4, 0-9%2 for two at once
  --folds K             a job array, a run for each fold; cnnlab crossval gathers them
  --sweep FILE          a job array, a run for each point of a grid, or --count N points at random
  --copy-data           each node copies the folder of the data to its own disk first ($SLURM_TMPDIR, $TMPDIR or /tmp)
  --online              let wandb use the network, which compute nodes seldom have
  --dry-run             print the script, and submit nothing

Any other option is sbatch's: --partition gpu, --account=NAME, --mem=64G."""

_NUMBERS = ("nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "folds", "count")
_TEXTS = ("time", "array", "sweep")
_SWITCHES = ("copy-data", "online", "dry-run")
_COMMANDS = ("fit", "resume", "validate", "test", "predict")


@dataclass
class _Options:
    """What stands before the two dashes."""

    nodes: int = 1
    gpus_per_node: int = 1
    ntasks_per_node: int = 1
    cpus_per_task: int | None = None
    time: str = "1-00"
    array: str | None = None
    folds: int | None = None
    sweep: str | None = None
    count: int | None = None
    copy_data: bool = False
    online: bool = False
    dry_run: bool = False
    sbatch: list[str] = field(default_factory=list)

    @property
    def processes_per_node(self) -> int:
        return self.gpus_per_node or self.ntasks_per_node

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


def slurm(command: str, arguments: list[str]) -> None:
    """Write and submit a job, or say how those of a run are.

    Raises:
        InputError: If there is something to mend, or no SLURM.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not arguments or {"-h", "--help"} & set(own):
        print(_USAGE)
    elif own[0] == "status":
        if len(own) != 2:
            raise InputError("cnnlab slurm status takes a run's folder: cnnlab slurm status RUN")
        _status(Run(Path(own[1])))
    elif own == arguments:
        raise InputError("what is to be run? cnnlab slurm --nodes 2 -- fit --config C (cnnlab slurm --help)")
    else:
        _submit(_parsed(own), arguments[len(own) + 1 :])


def _parsed(arguments: list[str]) -> _Options:
    options = _Options()
    rest = list(arguments)
    while rest:
        given, equals, value = rest.pop(0).partition("=")
        name = given.removeprefix("--").replace("_", "-")
        if not given.startswith("--"):
            raise InputError(
                f"what is {given!r}? Options of cnnlab slurm begin with --; what is to be run stands after --"
            )
        if name in _SWITCHES and not equals:
            setattr(options, name.replace("-", "_"), True)
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if name in _NUMBERS:
            least = 0 if name == "gpus-per-node" else 1
            if not value.isdigit() or int(value) < least:
                raise InputError(f"--{name} is {value!r}, expected a number, {least} or more")
            setattr(options, name.replace("-", "_"), int(value))
        elif name in _TEXTS:
            if not value:
                raise InputError(f"--{name} lacks its value")
            setattr(options, name.replace("-", "_"), value)
        else:
            options.sbatch.append(f"{given}={shlex.quote(value)}" if value else given)
    if sum(value is not None for value in (options.array, options.folds, options.sweep)) > 1:
        raise InputError("--array, --folds and --sweep each make a job array: choose one")
    if options.gpus_per_node and options.ntasks_per_node != 1:
        raise InputError("a GPU has one process: leave out --ntasks-per-node, or say --gpus-per-node 0")
    return options


def _submit(options: _Options, arguments: list[str]) -> None:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in _COMMANDS:
        raise InputError(f"there is no command {command!r} to be run as a job: {nearest(command, _COMMANDS)}")
    if command != "fit" and (options.array or options.folds or options.sweep):
        raise InputError(f"--array, --folds and --sweep are for fit, not for {command}")
    if command not in ("fit", "resume") and options.copy_data:
        raise InputError(f"--copy-data is for training, {command} reads each image once")
    if options.count is not None and options.sweep is None:
        raise InputError("--count is for --sweep: how many points are drawn")
    asked = rest
    rest = [*rest, *_placed(options, rest)]
    request = parse_request(command, rest)
    if command == "resume" and request.ckpt_path is not None:
        raise InputError("a resume that is queued again would begin at --ckpt_path again: resume it here first")
    decided = plan(request)
    run = Run(decided.run.folder)
    try:
        tasks, at_once = _tasks(options, run)
        # Tasks with seeds or folds differ by a number only.
        flags = [task.flags for task in (tasks if options.sweep else tasks[:1])] or [()]
        with architecture_only():
            made_of = [configure(replace(decided, arguments=[*decided.arguments, *own])) for own in flags]
        told = [look_over(cli, command, options.processes, options.time, options.online) for cli in made_of]
        notes = told[0]
        job = _job(made_of[0], options, run, [command, *rest], tasks, at_once)
        script = cluster.render(job)
        _refuse_second_job(run)
    except InputError:
        run.discard_if_empty()
        raise
    if options.dry_run:
        print(script, end="")
        for note in notes:
            say(f"note: {note}")
        run.discard_if_empty()
        return
    if not cluster.is_here():
        run.discard_if_empty()
        raise InputError(
            "there is no SLURM on this machine (sbatch is not found): log in to one that has it, or train without it: "
            + _without_slurm(options, job)
        )
    number = _handed_over(run, script, options, asked)
    for note in notes:
        say(f"note: {note}")
    printed = job.folder / (f"{number}_*.out" if job.tasks else f"{number}.out")
    rows = {
        "run": run.folder,
        "script": job.folder / "job.sh",
        "prints to": printed,
        "next": f"cnnlab slurm status {run.folder}",
    }
    summary(f"job {number}" + (f", {len(job.tasks)} tasks" if job.tasks else ""), rows)


def _refuse_second_job(run: Run) -> None:
    """Two jobs would write into the same files."""
    if cluster.is_here() and (going := cluster.unfinished(_jobs(run))):
        raise InputError(f"job {going[0]} of {run.folder} waits or runs: wait for its end, or scancel {going[0]}")


def _jobs(run: Run) -> list[str]:
    kept = run.jobs / "jobs.json"
    ids: list[str] = json.loads(kept.read_text()) if kept.is_file() else []
    return ids


def _handed_over(run: Run, script: str, options: _Options, asked: list[str]) -> str:
    """Keep the script, and submit it; leave nothing new behind where SLURM refuses it.

    Returns:
        The job's number.
    """
    path = run.jobs / "job.sh"
    new = not run.exists()
    if options.folds:
        begin_crossval(run.folder, options.folds, _of_crossval(asked))
    write_atomically(path, script.encode())
    try:
        number = cluster.submit(path)
    except InputError:
        if new:
            shutil.rmtree(run.folder)
        raise
    write_json(run.jobs / "jobs.json", [*_jobs(run), number])
    return number


def _placed(options: _Options, rest: list[str]) -> list[str]:
    """What the trainer must know of the job."""
    names = {argument.partition("=")[0] for argument in rest}
    for name, own in (("devices", "--gpus-per-node"), ("num_nodes", "--nodes")):
        if f"--trainer.{name}" in names:
            raise InputError(f"--trainer.{name} is what the job has: leave it out, and say {own} before the two dashes")
    flags = ["--trainer.num_nodes", str(options.nodes), "--trainer.devices", str(options.processes_per_node)]
    if "--trainer.accelerator" not in names:
        flags += ["--trainer.accelerator", "gpu" if options.gpus_per_node else "cpu"]
    return flags


def _tasks(options: _Options, run: Run) -> tuple[list[cluster.ArrayTask], int | None]:
    """The tasks of a job array, none for a single job; how many of them at once, where that is said."""
    if options.array:
        return cluster.seeds(run.folder, options.array)
    if options.folds is not None:
        return cluster.folds(run.folder, options.folds), None
    if options.sweep:
        return cluster.of_sweep(run.folder, Path(options.sweep), options.count), None
    return [], None


def _job(
    cli: ConfigOnlyCLI,
    options: _Options,
    run: Run,
    words: list[str],
    tasks: list[cluster.ArrayTask],
    at_once: int | None,
) -> cluster.Job:
    command, *rest = words
    if options.processes > 1 and cli.settings["trainer"].get("strategy") == "auto":
        rest = [*rest, "--trainer.strategy", "ddp"]
    if command == "fit":
        # Queued again, or submitted again, it goes on.
        for name in ("--run", "--resume"):
            _, rest = take_option(name, rest)
        rest += ["--resume", "auto", *([] if tasks else ["--run", str(run.folder.absolute())])]
    environment = {}
    if not options.online and logs_to_wandb(cli):
        environment["WANDB_MODE"] = "offline"
    if command == "fit" and cli.model.hparams.get("weights") == "pretrained":
        environment[FOLDER_VARIABLE] = str(prefetched_folder().absolute())
    return cluster.Job(
        name=run.folder.name,
        command=[command, *rest],
        folder=run.jobs,
        time=options.time,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        processes_per_node=options.processes_per_node,
        cpus_per_process=options.cpus_per_task,
        tasks=tasks,
        at_once=at_once,
        sbatch=options.sbatch,
        environment=environment,
        copied=_root(cli) if options.copy_data else None,
        goes_on=command in ("fit", "resume"),
    )


def _root(cli: ConfigOnlyCLI) -> Path:
    """The folder of the data, to be copied."""
    root = data_setting(cli, "root")
    if root is None or not getattr(getattr(cli.datamodule, "val_set", None), "paths", ()):
        name = type(cli.datamodule).__name__
        raise InputError(f"--copy-data: {name} has no image files that are read again and again; leave it out")
    return Path(root).absolute()


def _of_crossval(rest: list[str]) -> list[str]:
    """The options as cnnlab crossval would be given them."""
    for name in ("--run", "--resume"):
        _, rest = take_option(name, rest)
    request = parse_request("fit", rest)
    return [part for config in request.configs for part in ("--config", config)] + request.flags


def _without_slurm(options: _Options, job: cluster.Job) -> str:
    """The line of torchrun that does the same."""
    where = ["--standalone"]
    if options.nodes > 1:
        where = ["--nnodes", str(options.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "FIRST_NODE:29500"]
        where += ["--rdzv-id", job.name]
    line = ["torchrun", *where, "--nproc-per-node", str(options.processes_per_node)]
    # Without the dashes torchrun takes --run for an option of its own.
    line += ["-m", "--", "cnnlab", *job.command]
    text = shlex.join(line) + (f" {job.tasks[0].line} (and so on for each task)" if job.tasks else "")
    return text + (" (on each node)" if options.nodes > 1 else "")


def _status(run: Run) -> None:
    ids = _jobs(run)
    if not ids:
        raise InputError(f"{run.folder} has no jobs: cnnlab slurm ... -- fit ... --run {run.folder} submits one")
    states = cluster.job_states(ids)
    for row in states:
        say(f"job {row['job']}  {row['state'].lower()}  {row['elapsed']} of {row['limit']}  {row['where']}")
    if gone := [number for number in ids if not any(row["job"].partition("_")[0] == number for row in states)]:
        say(f"job {', '.join(gone)}  no longer known to SLURM: ended")
    for one in [run, *(Run(folder) for folder in sorted(run.folder.iterdir()) if (folder / "config.yaml").is_file())]:
        if one.config.is_file():
            say(f"{one.folder}  {_progress(one)}")
    say(f"prints to {run.jobs}")


def _progress(run: Run) -> str:
    """The newest numbers."""
    rows = MetricsCsv(run.metrics).read()
    if not rows:
        return "has logged nothing yet"
    measured = [
        {name: float(value) for name, value in row.items() if name.startswith("val/") and value} for row in rows
    ]
    newest = next((values for values in reversed(measured) if values), {})
    return "  ".join([f"step {int(rows[-1]['step']) + 1}", *(f"{name} {value:.4g}" for name, value in newest.items())])
