"""cnnlab slurm."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnnlab import cluster
from cnnlab.commands.arguments import parse_request, plan, take_option
from cnnlab.commands.crossval import start_crossval
from cnnlab.commands.loading import ConfigOnlyCLI, configure
from cnnlab.commands.messages import say, summary
from cnnlab.commands.preflight import check_job, data_setting, logs_to_wandb
from cnnlab.errors import InputError, nearest
from cnnlab.loggers import MetricsCsv
from cnnlab.models.weights import FOLDER_VARIABLE, architecture_only, prefetched_folder
from cnnlab.run import Run
from cnnlab.writing import write_atomically, write_json

_USAGE = """\
usage: cnnlab slurm [OPTIONS] -- fit --config C [OPTIONS OF fit]      (or resume, validate, test, predict)
       cnnlab slurm status RUN

Writes a job script into the run's folder, checks for errors that would occur on the cluster, and submits the script.
Shortly before the time limit, or after a signal, the run saves itself and the job queues again, until it is finished.

  --nodes N             number of nodes (1)
  --gpus-per-node N     GPUs per node, with one process each (1); 0 to use CPUs only
  --ntasks-per-node N   processes per node without GPUs (1)
  --cpus-per-task N     CPU cores per process
  --time T              time limit: minutes, hours:minutes:seconds or days-hours (1-00)
  --array SEEDS         job array with a run for each seed: 0-4; with 0-9%2, two run at a time
  --folds K             job array with a run for each fold; cnnlab crossval collects them
  --sweep FILE          job array with a run for each point of a grid, or for --count N random points
  --copy-data           first copy the data's folder to each node's own disk ($SLURM_TMPDIR, $TMPDIR or /tmp)
  --online              let wandb use the network, which compute nodes seldom have
  --dry-run             print the script and submit nothing

Other options go to sbatch: --partition gpu, --account=NAME, --mem=64G."""

_NUMBERS = ("nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "folds", "count")
_TEXTS = ("time", "array", "sweep")
_SWITCHES = ("copy-data", "online", "dry-run")
_COMMANDS = ("fit", "resume", "validate", "test", "predict")


@dataclass
class _Options:
    """The options before the ``--``."""

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
    """Write and submit a job, or show the status of a run's jobs.

    Raises:
        InputError: If an argument is invalid, if the job would fail, or if this machine has no SLURM.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not arguments or {"-h", "--help"} & set(own):
        print(_USAGE)
    elif own[0] == "status":
        if len(own) != 2:
            raise InputError("cnnlab slurm status takes a run's folder: cnnlab slurm status RUN")
        _status(Run(Path(own[1])))
    elif own == arguments:
        raise InputError("no command after --: cnnlab slurm --nodes 2 -- fit --config C (cnnlab slurm --help)")
    else:
        _submit(parse_options(own), arguments[len(own) + 1 :])


def parse_options(arguments: list[str]) -> _Options:
    """Parse the options before the ``--``; unknown ones are kept for sbatch.

    Raises:
        InputError: If an option is invalid.
    """
    options = _Options()
    rest = list(arguments)
    while rest:
        given, equals, value = rest.pop(0).partition("=")
        name = given.removeprefix("--").replace("_", "-")
        if not given.startswith("--"):
            raise InputError(
                f"{given!r} is no option: options of cnnlab slurm begin with --, and the command follows a lone --"
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
        raise InputError("each GPU has one process: leave out --ntasks-per-node, or set --gpus-per-node 0")
    return options


def _submit(options: _Options, arguments: list[str]) -> None:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in _COMMANDS:
        raise InputError(f"{command!r} cannot run as a job: {nearest(command, _COMMANDS)}")
    if command != "fit" and (options.array or options.folds or options.sweep):
        raise InputError(f"--array, --folds and --sweep are for fit, not for {command}")
    if command not in ("fit", "resume") and options.copy_data:
        raise InputError(f"--copy-data is for training: {command} reads each image only once")
    if options.count is not None and options.sweep is None:
        raise InputError("--count is the number of random points of a --sweep, which is missing")
    asked = rest
    rest = [*rest, *_trainer_flags(options, rest)]
    request = parse_request(command, rest)
    if command == "resume" and request.ckpt_path is not None:
        raise InputError("a job that is queued again would start at --ckpt_path again: first resume without slurm")
    decided = plan(request)
    run = Run(decided.run.folder)
    try:
        tasks, max_parallel = _array_tasks(options, run)
        # Tasks of seeds or folds differ in one number only, so checking one is enough.
        flags = [task.flags for task in (tasks if options.sweep else tasks[:1])] or [()]
        with architecture_only():
            configurations = [configure(replace(decided, arguments=[*decided.arguments, *own])) for own in flags]
        checks = [check_job(cli, command, options.processes, options.time, options.online) for cli in configurations]
        notes = checks[0]
        job = _create_job(configurations[0], options, run, [command, *rest], tasks, max_parallel)
        script = cluster.render(job)
        # Two jobs of a run would write the same files.
        if cluster.is_available() and (active := cluster.active_jobs(_job_ids(run))):
            raise InputError(f"job {active[0]} of {run.folder} waits or runs: wait for its end, or scancel {active[0]}")
    except InputError:
        run.discard_if_empty()
        raise
    if options.dry_run:
        print(script, end="")
        for note in notes:
            say(f"note: {note}")
        run.discard_if_empty()
        return
    if not cluster.is_available():
        run.discard_if_empty()
        raise InputError(
            "this machine has no SLURM (sbatch is not found): log in to one that has it, or train without SLURM: "
            + _torchrun_line(options, job)
        )
    number = _submit_script(run, script, options, asked)
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


def _job_ids(run: Run) -> list[str]:
    kept = run.jobs / "jobs.json"
    ids: list[str] = json.loads(kept.read_text()) if kept.is_file() else []
    return ids


def _submit_script(run: Run, script: str, options: _Options, asked: list[str]) -> str:
    """Save the script, submit it, and return the job's id; remove a new run's folder if SLURM refuses the script."""
    path = run.jobs / "job.sh"
    new = not run.exists()
    if options.folds:
        start_crossval(run.folder, options.folds, parse_request("fit", asked).options)
    write_atomically(path, script.encode())
    try:
        number = cluster.submit(path)
    except InputError:
        if new:
            shutil.rmtree(run.folder)
        raise
    write_json(run.jobs / "jobs.json", [*_job_ids(run), number])
    return number


def _trainer_flags(options: _Options, rest: list[str]) -> list[str]:
    """Derive the trainer's flags from the job's resources."""
    names = {argument.partition("=")[0] for argument in rest}
    for name, own in (("devices", "--gpus-per-node"), ("num_nodes", "--nodes")):
        if f"--trainer.{name}" in names:
            raise InputError(f"--trainer.{name} comes from the job: leave it out, and give {own} before the two dashes")
    flags = ["--trainer.num_nodes", str(options.nodes), "--trainer.devices", str(options.processes_per_node)]
    if "--trainer.accelerator" not in names:
        flags += ["--trainer.accelerator", "gpu" if options.gpus_per_node else "cpu"]
    return flags


def _array_tasks(options: _Options, run: Run) -> tuple[list[cluster.ArrayTask], int | None]:
    """List the tasks of a job array (none for a single job), and how many run at a time (None without a limit)."""
    if options.array:
        return cluster.seed_tasks(run.folder, options.array)
    if options.folds is not None:
        return cluster.fold_tasks(run.folder, options.folds), None
    if options.sweep:
        return cluster.sweep_tasks(run.folder, Path(options.sweep), options.count), None
    return [], None


def _create_job(
    cli: ConfigOnlyCLI,
    options: _Options,
    run: Run,
    words: list[str],
    tasks: list[cluster.ArrayTask],
    max_parallel: int | None,
) -> cluster.Job:
    command, *rest = words
    if options.processes > 1 and cli.settings["trainer"].get("strategy") == "auto":
        rest = [*rest, "--trainer.strategy", "ddp"]
    if command == "fit":
        # The job continues its run when it is queued or submitted again.
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
        max_parallel=max_parallel,
        sbatch=options.sbatch,
        environment=environment,
        data_to_copy=_data_folder(cli) if options.copy_data else None,
        requeues=command in ("fit", "resume"),
    )


def _data_folder(cli: ConfigOnlyCLI) -> Path:
    """Return the data's folder, for --copy-data.

    Raises:
        InputError: If the data have no image files that are read repeatedly.
    """
    root = data_setting(cli, "root")
    if root is None or not getattr(getattr(cli.datamodule, "val_set", None), "paths", ()):
        name = type(cli.datamodule).__name__
        raise InputError(f"--copy-data: {name} has no image files that are read repeatedly; leave it out")
    if not (folder := Path(root).absolute()).exists():
        raise InputError(f"--copy-data copies a folder or a file, and {root} is inside one: name that with --data.root")
    return folder


def _torchrun_line(options: _Options, job: cluster.Job) -> str:
    """Return the torchrun command that runs the same without SLURM."""
    where = ["--standalone"]
    if options.nodes > 1:
        where = ["--nnodes", str(options.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "FIRST_NODE:29500"]
        where += ["--rdzv-id", job.name]
    line = ["torchrun", *where, "--nproc-per-node", str(options.processes_per_node)]
    # Without this --, torchrun reads --run as one of its own options.
    line += ["-m", "--", "cnnlab", *job.command]
    text = shlex.join(line) + (f" {job.tasks[0].line} (and so on for each task)" if job.tasks else "")
    return text + (" (on each node)" if options.nodes > 1 else "")


def _status(run: Run) -> None:
    ids = _job_ids(run)
    if not ids:
        raise InputError(f"{run.folder} has no jobs: cnnlab slurm ... -- fit ... --run {run.folder} submits one")
    states = cluster.job_states(ids)
    for row in states:
        say(f"job {row['job']}  {row['state'].lower()}  {row['elapsed']} of {row['limit']}  {row['where']}")
    if gone := [number for number in ids if not any(row["job"].partition("_")[0] == number for row in states)]:
        say(f"job {', '.join(gone)}  ended (SLURM no longer lists it)")
    for one in [run, *(Run(folder) for folder in sorted(run.folder.iterdir()) if (folder / "config.yaml").is_file())]:
        if one.config.is_file():
            say(f"{one.folder}  {_progress(one)}")
    say(f"prints to {run.jobs}")


def _progress(run: Run) -> str:
    """Describe a run's latest step and validation metrics."""
    rows = MetricsCsv(run.metrics).read()
    if not rows:
        return "has no metrics yet"
    measured = [
        {name: float(value) for name, value in row.items() if name.startswith("val/") and value} for row in rows
    ]
    newest = next((values for values in reversed(measured) if values), {})
    return "  ".join([f"step {int(rows[-1]['step']) + 1}", *(f"{name} {value:.4g}" for name, value in newest.items())])
