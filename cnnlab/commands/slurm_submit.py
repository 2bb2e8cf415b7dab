"""What cnnlab slurm submits: a job, checked before it waits in a queue."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from cnnlab import cluster
from cnnlab.commands.arguments import parse_request, plan, take_option
from cnnlab.commands.crossval import start_crossval
from cnnlab.commands.loading import ConfigOnlyCLI, configure
from cnnlab.commands.messages import say, summary
from cnnlab.commands.preflight import check_job, data_setting, logs_to_wandb
from cnnlab.commands.slurm import COMMANDS, Options, job_ids
from cnnlab.errors import InputError, nearest
from cnnlab.models.weights import FOLDER_VARIABLE, architecture_only, prefetched_folder
from cnnlab.run import Run
from cnnlab.writing import write_atomically, write_json


def submit(options: Options, arguments: list[str]) -> None:
    """Check a job, write its script, and submit it.

    Args:
        options: The options before the ``--``.
        arguments: The command and its arguments.

    Raises:
        InputError: If the job would fail, or if this machine has no SLURM.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        raise InputError(f"{command!r} cannot run as a job: {nearest(command, COMMANDS)}")
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
        if cluster.is_available() and (active := cluster.active_jobs(job_ids(run))):
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


def _submit_script(run: Run, script: str, options: Options, asked: list[str]) -> str:
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
    write_json(run.jobs / "jobs.json", [*job_ids(run), number])
    return number


def _trainer_flags(options: Options, rest: list[str]) -> list[str]:
    """Derive the trainer's flags from the job's resources."""
    names = {argument.partition("=")[0] for argument in rest}
    for name, own in (("devices", "--gpus-per-node"), ("num_nodes", "--nodes")):
        if f"--trainer.{name}" in names:
            raise InputError(f"--trainer.{name} comes from the job: leave it out, and give {own} before the two dashes")
    flags = ["--trainer.num_nodes", str(options.nodes), "--trainer.devices", str(options.processes_per_node)]
    if "--trainer.accelerator" not in names:
        flags += ["--trainer.accelerator", "gpu" if options.gpus_per_node else "cpu"]
    return flags


def _array_tasks(options: Options, run: Run) -> tuple[list[cluster.ArrayTask], int | None]:
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
    options: Options,
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


def _torchrun_line(options: Options, job: cluster.Job) -> str:
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
