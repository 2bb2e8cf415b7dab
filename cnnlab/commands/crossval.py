"""cnnlab crossval."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

from cnnlab.commands.arguments import parse_request, take_option
from cnnlab.commands.messages import say, summary
from cnnlab.commands.processes import run_cnnlab
from cnnlab.errors import CnnlabError, InputError
from cnnlab.lock import locked
from cnnlab.outputs.table import distinct
from cnnlab.run import Run, choose
from cnnlab.writing import write_json, written_row_by_row
from cnnlab.yaml_text import load_yaml

_USAGE = """\
usage: cnnlab crossval --config C [--folds K] [--run DIR] [OPTIONS OF fit]

Divides the training and validation images into K folds (5) by their names, so that other files move none of them.
Each fold has images of each class, if there are enough; groups are kept together. Trains K networks in DIR/fold-0,
DIR/fold-1, ...; each is validated on the fold that it was not trained on. If DIR exists, finished folds are kept and
the others continue.

Results: DIR/crossval.json (mean and spread of each metric over the folds) and DIR/predictions.csv (each image as
predicted by the network that was not trained on it). Each network is from its best epoch on its own fold, so the mean
is slightly optimistic. Use it to compare settings, and test the chosen one on a test set."""


def crossval(command: str, arguments: list[str]) -> None:
    """Train and validate one network for each fold.

    Raises:
        InputError: If an option is invalid, or if the folder belongs to other folds or options.
        CnnlabError: If a fold stops with an error.
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
        raise InputError("crossval takes --config, --folds, --run and options of fit; it continues an existing DIR")
    folder = choose(request.run, f"crossval-{request.recipe}").folder
    with locked(folder), Run(folder).replacing("crossval", ("crossval.json", "predictions.csv")):
        _train_folds(folder, count, request.options)


def _deviation(values: list[float]) -> float:
    """The standard deviation of the folds' values; NaN if a fold has none.

    >>> _deviation([1.0, 3.0]), _deviation([1.0, math.nan])
    (1.4142135623730951, nan)
    """
    return math.nan if any(map(math.isnan, values)) else statistics.stdev(values)


def _train_folds(folder: Path, count: int, options: list[str]) -> None:
    """Train the folds that are not finished, and collect the results of all."""
    start_crossval(folder, count, options)
    runs = [Run(folder / f"fold-{fold}") for fold in range(count)]
    for fold, run in enumerate(runs):
        if not (run.validation.is_file() and _predictions(run).is_file()):
            own = [*options, "--data.folds", str(count), "--data.fold", str(fold)]
            _train(run, [*(_precision_of(runs[0]) if fold else []), *own])
    results = [json.loads(run.validation.read_text()) for run in runs]
    table = {
        name: {"mean": statistics.fmean(values), "standard_deviation": _deviation(values), "folds": values}
        for name in results[0]
        if (values := [math.nan if result[name] is None else result[name] for result in results])
    }
    write_json(folder / "crossval.json", {"folds": count, "options": options, "metrics": table})
    _merge_predictions(runs, folder / "predictions.csv")
    rows: dict[str, object] = {
        name: f"{value['mean']:.6g} +- {value['standard_deviation']:.3g}" for name, value in table.items()
    }
    rows |= {"metrics": folder / "crossval.json", "predictions": folder / "predictions.csv"}
    summary(f"{count} folds in {folder}", rows)


def start_crossval(folder: Path, count: int, options: list[str]) -> None:
    """Save the folds and options, so that folds with different settings are never averaged.

    Raises:
        InputError: If the folder has other folds or options, or is not a cross-validation.
    """
    request = {"folds": count, "options": options}
    saved = folder / "request.json"
    if saved.is_file():
        if json.loads(saved.read_text()) != request:
            raise InputError(
                f"{folder} was begun with other folds or options ({saved}): repeat those, or give another --run"
            )
    elif Run(folder).exists():
        raise InputError(f"{folder} exists and is not a cross-validation: choose another --run")
    else:
        write_json(saved, request)


def _train(run: Run, options: list[str]) -> None:
    """Train, validate and predict a fold, each in a separate process."""
    say(f"-- {run.folder}")
    for arguments in (
        ["fit", *options, "--run", str(run.folder), "--resume", "auto"],
        ["validate", str(run.folder)],
        ["predict", str(run.folder), "--data.predict", "val"],
    ):
        if status := run_cnnlab(*arguments):
            error = CnnlabError(
                f"{run.folder}: cnnlab {arguments[0]} stopped with exit status {status} (see above); after a fix, "
                "repeat the command to continue"
            )
            error.exit_code = status
            raise error


def _precision_of(run: Run) -> list[str]:
    """The flags for the precision that a fold has chosen: the others take it too, and differ by their images only."""
    precision = load_yaml(run.config.read_text(encoding="utf-8")).get("trainer", {}).get("precision")
    return [] if precision is None else ["--trainer.precision", str(precision)]


def _predictions(run: Run) -> Path:
    return run.results_of("val").predictions


def _merge_predictions(runs: list[Run], path: Path) -> None:
    """Merge the folds' tables, sorted by path, with the fold in the first column."""
    header: list[str] = []
    rows: list[list[str]] = []
    for fold, run in enumerate(runs):
        with _predictions(run).open(newline="", encoding="utf-8") as file:
            header, *table = csv.reader(file)
            # The index is unique within a fold only.
            rows += [[str(fold), *row[1:]] for row in table]
    with written_row_by_row(path) as file:
        columns = distinct(["fold", *header[1:]], "class or value")
        csv.writer(file, lineterminator="\n").writerows([columns, *sorted(rows, key=lambda row: row[1])])
