"""cnnlab crossval."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

from cnnlab.commands.arguments import parse_request, take_option
from cnnlab.commands.messages import say, summary
from cnnlab.commands.processes import run_cnnlab
from cnnlab.errors import CnnlabError, InputError
from cnnlab.run import Run, choose
from cnnlab.writing import write_atomically, write_json

_USAGE = """\
usage: cnnlab crossval --config C [--folds K] [--run DIR] [OPTIONS OF fit]

Divides training and validation images into K folds (5), each class evenly and groups whole, and trains K networks,
each validated on a fold that it has not seen: DIR/fold-0, DIR/fold-1, ... Where DIR exists, what is done is kept and
the rest goes on. In the end: DIR/crossval.json (each metric's mean and spread over the folds) and
DIR/predictions.csv (each image as predicted by the network that has not seen it). Each network is the one of its best
epoch on its fold, so the mean is a little too good: compare settings by it, and test the chosen one on a test set."""


def crossval(command: str, arguments: list[str]) -> None:
    """Train and validate a network a fold.

    Raises:
        InputError: If there is something to mend.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    text, rest = take_option("--folds", arguments)
    count = int(text) if text is not None and text.isdigit() else 5 if text is None else 0
    if count < 2:
        raise InputError(f"--folds is {text}, expected a number, 2 or more")
    request = parse_request("fit", rest)
    if request.target is not None or request.ckpt_path is not None or request.resume != "never":
        raise InputError("crossval takes --config, --folds, --run and options of fit; where DIR exists, it goes on")
    folder = choose(request.run, f"crossval-{request.recipe}").folder
    options = [part for config in request.configs for part in ("--config", config)] + request.flags
    begin_crossval(folder, count, options)
    runs = [Run(folder / f"fold-{fold}") for fold in range(count)]
    for fold, run in enumerate(runs):
        if not (run.validation.is_file() and _predictions(run).is_file()):
            _train(run, [*options, "--data.folds", str(count), "--data.fold", str(fold)])
    results = [json.loads(run.validation.read_text()) for run in runs]
    table = {
        name: {
            "mean": statistics.fmean(values),
            "standard_deviation": statistics.stdev(values),
            "folds": values,
        }
        for name in results[0]
        if (values := [result[name] for result in results])
    }
    write_json(folder / "crossval.json", {"folds": count, "options": options, "metrics": table})
    write_atomically(folder / "predictions.csv", _merged(runs))
    rows: dict[str, object] = {
        name: f"{value['mean']:.6g} +- {value['standard_deviation']:.3g}" for name, value in table.items()
    }
    rows |= {"metrics": folder / "crossval.json", "predictions": folder / "predictions.csv"}
    summary(f"{count} folds in {folder}", rows)


def begin_crossval(folder: Path, count: int, options: list[str]) -> None:
    """Remember what is asked for: folds of different settings must not be averaged.

    Raises:
        InputError: If the folder holds something else.
    """
    asked = {"folds": count, "options": options}
    kept = folder / "request.json"
    if kept.is_file():
        if json.loads(kept.read_text()) != asked:
            raise InputError(
                f"{folder} was begun with other folds or options ({kept}): repeat those, or give another --run"
            )
    elif Run(folder).exists():
        raise InputError(f"{folder} exists already, and is no cross-validation: choose another --run")
    else:
        write_json(kept, asked)


def _train(run: Run, options: list[str]) -> None:
    """Train, validate and predict a fold, each in a process of its own, as a user would."""
    say(f"-- {run.folder}")
    for arguments in (
        ["fit", *options, "--run", str(run.folder), "--resume", "auto"],
        ["validate", str(run.folder)],
        ["predict", str(run.folder), "--data.predict", "val"],
    ):
        if status := run_cnnlab(*arguments):
            error = CnnlabError(
                f"{run.folder}: cnnlab {arguments[0]} stopped with exit status {status} (see above); once that is "
                "mended, the same cnnlab crossval goes on"
            )
            error.exit_code = status
            raise error


def _predictions(run: Run) -> Path:
    return run.results_of("val").predictions


def _merged(runs: list[Run]) -> bytes:
    """The folds' tables as one, ordered by path, with the fold in the first column."""
    rows: list[list[str]] = []
    header: list[str] = []
    for fold, run in enumerate(runs):
        with _predictions(run).open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader)
            # The index counts within a fold, and says nothing of the whole.
            rows += [[str(fold), *row[1:]] for row in reader]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", *header[1:]])
    rows.sort(key=lambda row: row[1])
    writer.writerows(rows)
    return text.getvalue().encode()
