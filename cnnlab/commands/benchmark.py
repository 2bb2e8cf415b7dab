"""cnnlab benchmark."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnnlab.commands.loading import load_cnnlab_run
from cnnlab.commands.messages import check_applicable, print_table
from cnnlab.commands.options import CommandParser
from cnnlab.deploy.benchmark import VARIANTS, Row, Subject, as_records, benchmark
from cnnlab.deploy.export import Pipeline, Predict
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploying import example_images, metadata, pipeline, score, training_images
from cnnlab.errors import InputError
from cnnlab.figures import bars
from cnnlab.imaging import EvalTransform
from cnnlab.models.decoding import LabelDecoder
from cnnlab.models.factory import create_network, preprocessing
from cnnlab.models.registry import default_image_shape
from cnnlab.models.standardize import Standardize
from cnnlab.outputs import Labels
from cnnlab.run import Run, choose
from cnnlab.writing import to_json, write_csv, write_json


def benchmark_command(command: str, arguments: list[str]) -> None:
    """Time a network in all the ways in which this machine can run it.

    Raises:
        InputError: If a value is out of range, the run or network cannot be loaded, or a named network is given flags.
    """
    asked, flags = (parser := _parser()).parse_with_others(arguments)
    for name in ("repetitions", "batch", "images", "calibrate", "threads", "size", "channels", "classes"):
        least = 2 if name == "repetitions" else 1
        if (value := getattr(asked, name)) is not None and value < least:
            raise InputError(f"--{name} is {value}, expected {least} or more")
    is_run = Path(asked.subject).exists()
    others = ("size", "channels", "classes") if is_run else ("pruned", "images", "calibrate")
    check_applicable(asked, parser, others, "a run, which has its own" if is_run else "a network by its name")
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    batches = sorted({1, asked.batch})
    measure: Callable[[Predict], float] | None = None
    with tempfile.TemporaryDirectory(prefix="cnnlab-benchmark-") as scratch:
        if is_run:
            subject, measure, metric, out = _of_run(asked, flags, Path(scratch))
        else:
            if flags:
                raise InputError(f"there is no option {flags[0]} for a network by its name: it is a run's")
            subject, metric = _of_network(asked, Path(scratch))
            out = Path(asked.out) if asked.out is not None else choose(None, f"benchmark-{asked.subject}").folder
        rows = benchmark(subject, asked.variants, asked.repetitions, measure, batches)
    records = as_records(rows)
    with Run(out).replacing("benchmark"):
        _write(asked, subject, metric, rows, records, Run(out).benchmark)


def _write(
    asked: argparse.Namespace,
    subject: Subject,
    metric: str,
    rows: Sequence[Row],
    records: Sequence[dict[str, Any]],
    table: Path,
) -> None:
    """Write and print the table."""
    batches = sorted({1, asked.batch})
    machine = {"threads": torch.get_num_threads(), "image": list(subject.images.shape[1:]), "metric": metric}
    write_json(table, {**machine, "versions": dict(subject.metadata.versions), "rows": records})
    write_csv(table.with_suffix(".csv"), records)
    timed = [row for row in rows if row.milliseconds is not None]
    bars(
        [row.variant for row in timed],
        {f"batch of {size}": [row.images_per_second(size) or 0.0 for row in timed] for size in batches},
        "images a second",
        f"{asked.subject}, {machine['threads']} threads",
        table.with_suffix(".png"),
    )
    _show(asked.subject, machine, records, batches)
    if asked.json:
        print(to_json(records))
    print(f"{table}, .csv, .png")


def _of_run(
    asked: argparse.Namespace, flags: list[str], scratch: Path
) -> tuple[Subject, Callable[[Predict], float], str, Path]:
    task, data, run, checkpoint = load_cnnlab_run(asked.subject, flags, "fit")
    images = example_images(task, data, asked.batch)
    described = metadata(task, data, checkpoint)
    subject = Subject(
        pipeline(task),
        images,
        # If images keep their own sizes, a file must take all sizes.
        replace(described, dynamic_size=described.transform.size is None),
        lambda: training_images(data, asked.calibrate),
        scratch,
        pipeline(load_cnnlab_run(asked.pruned, flags)[0]) if asked.pruned is not None else None,
    )
    out = Path(asked.out) if asked.out is not None else run.folder
    return subject, lambda predict: score(task, data, predict, most=asked.images), task.monitor, out


def _of_network(asked: argparse.Namespace, scratch: Path) -> tuple[Subject, str]:
    """Build a network by its name, with random weights and random images."""
    network = create_network(asked.subject, asked.classes, asked.channels)
    known = preprocessing(asked.subject, asked.channels)
    usual = default_image_shape(asked.subject, asked.channels)[1:]
    height, width = (asked.size, asked.size) if asked.size is not None else usual
    mean, std = (known.mean, known.std) if known else ([0.5] * asked.channels, [0.5] * asked.channels)
    generator = torch.Generator().manual_seed(0)
    shape = (max(asked.batch, 2), asked.channels, height, width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    names = [str(number) for number in range(asked.classes)]
    described = ModelMetadata(Labels(names), EvalTransform(asked.channels, (height, width)))
    whole = Pipeline(Standardize(mean, std), network, LabelDecoder())
    return Subject(whole, images, described, lambda: [images[:16].numpy()], scratch), "none: the weights are random"


def _show(name: str, machine: dict[str, Any], records: Sequence[dict[str, Any]], batches: Sequence[int]) -> None:
    shape = "x".join(map(str, machine["image"]))
    title = f"{name}: images {shape}, {machine['threads']} threads, metric {machine['metric']}"
    numbers = [name for size in batches for name in (f"batch {size}, ms", "images/s", "faster")]
    columns = [("", False), *((name, True) for name in [*numbers, "MB", "peak MB", "metric", "change"])]
    rows = []
    for record in records:
        if record["reason"]:
            continue
        cells = [record["variant"]]
        for size in batches:
            middle, low, high = (
                record[f"batch_{size}_ms{side}"] for side in ("", "_first_quartile", "_third_quartile")
            )
            cells += [f"{middle:.3g} ±{(high - low) / 2 / middle:.0%}"]
            cells += [f"{record[f'batch_{size}_images_per_second']:,.0f}", f"{record[f'batch_{size}_speedup']:.2f}"]
        cells += [_number(record["megabytes"], ".2f"), _number(record["peak_megabytes"], ".0f")]
        cells += [_number(record["metric"], ".4f"), _number(record["metric_change"], "+.4f")]
        rows.append(cells)
    missing = [f"{record['variant']}: not here: {record['reason']}" for record in records if record["reason"]]
    print_table(title, columns, rows, missing, width=140)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab benchmark",
        description="Time the best network of a run, or a network by its name with random weights, in all ways in "
        "which this machine can run it, alternating: medians and quartiles, and what each way costs in accuracy. Other "
        "flags, such as --data.root, are those of predict.",
    )
    parser.add_argument("subject", metavar="RUN|MODEL", help="a run's folder, a checkpoint, or a network's name")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--pruned", metavar="RUN", help="what cnnlab prune has made of it")
    parser.add_argument("--repetitions", type=int, default=20, help="how often each is timed (20)")
    parser.add_argument("--batch", type=int, default=32, help="images at once, besides one by one (32)")
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--images", type=int, default=1000, help="validation images for the metric (1000)")
    parser.add_argument("--calibrate", type=int, default=128, help="training images that INT8 is calibrated with (128)")
    parser.add_argument("--size", type=int, help="of a MODEL's images (its pretraining's, or 224)")
    parser.add_argument("--channels", type=int, default=3, help="of a MODEL's images (3)")
    parser.add_argument("--classes", type=int, default=1000, help="of a MODEL (1000)")
    parser.add_argument(
        "--out", metavar="DIR", help="where benchmark.json, .csv and .png go (RUN, or runs/benchmark-MODEL-TIME)"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON, too")
    return parser
