"""cnnlab slurm."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from cnnlab import cluster
from cnnlab.commands.messages import say
from cnnlab.errors import InputError
from cnnlab.run import Run
from cnnlab.writing import read_csv

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
COMMANDS = ("fit", "resume", "validate", "test", "predict")


@dataclass
class Options:
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
        """One for each GPU, or those that were asked for."""
        return self.gpus_per_node or self.ntasks_per_node

    @property
    def processes(self) -> int:
        """The processes of all nodes."""
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
        options = parse_options(own)
        from cnnlab.commands.slurm_submit import submit  # Checks the job with the libraries of a training.

        submit(options, arguments[len(own) + 1 :])


def parse_options(arguments: list[str]) -> Options:
    """Parse the options before the ``--``; unknown ones are kept for sbatch.

    Raises:
        InputError: If an option is invalid.
    """
    options = Options()
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


def job_ids(run: Run) -> list[str]:
    """The numbers of the jobs that were submitted for a run."""
    kept = run.jobs / "jobs.json"
    ids: list[str] = json.loads(kept.read_text()) if kept.is_file() else []
    return ids


def _status(run: Run) -> None:
    ids = job_ids(run)
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
    rows = read_csv(run.metrics)
    if not rows:
        return "has no metrics yet"
    measured = [
        {name: float(value) for name, value in row.items() if name.startswith("val/") and value} for row in rows
    ]
    newest = next((values for values in reversed(measured) if values), {})
    return "  ".join([f"step {int(rows[-1]['step']) + 1}", *(f"{name} {value:.4g}" for name, value in newest.items())])
