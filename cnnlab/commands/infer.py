"""cnnlab infer: predict with an exported file. This module does not need torch."""

from __future__ import annotations

import csv
from pathlib import Path

from cnnlab.commands.options import CommandParser
from cnnlab.commands.progress import progress
from cnnlab.deploy.certificate import verify
from cnnlab.deploy.runtime import PROVIDERS, OnnxPredictor
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, collect_images
from cnnlab.outputs import AnswerWriter
from cnnlab.outputs.object_files import FORMATS, check_format, write_objects
from cnnlab.results import results_folder, source_of
from cnnlab.writing import write_atomically, written_row_by_row


def infer(command: str, arguments: list[str]) -> None:
    """Predict images with an exported file; write a table, and files such as masks next to it.

    Raises:
        InputError: If the file cannot be used, there are no images, or --out exists. Also if some images could not be
            read, after all others were predicted.
    """
    asked = _parser().parse_own(arguments)
    model = Path(asked.model)
    for name in ("batch_size", "threads"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected 1 or more")
    source, name = source_of(asked.paths)
    out = Path(asked.out) if asked.out is not None else results_folder(model.parent, source, name) / "predictions.csv"
    if asked.verify:
        verify(model)
    if out.exists():
        raise InputError(f"--out {out} exists already, and is not overwritten: choose another, or remove it")
    predictor = OnnxPredictor(model, asked.providers, asked.threads, asked.conf)
    output = predictor.output
    check_format(asked.format, output)
    if output.has_files or asked.format != "csv":
        for folder in (out.parent / name for name in ("masks", "overlays", "probabilities", "labels")):
            if folder.exists():
                raise InputError(f"{folder} is of another table: choose a new folder with --out DIR/{out.name}")
    paths = collect_images(asked.paths)
    if asked.out is None:
        write_atomically(out.with_name("source.txt"), source.encode())
    broken: dict[str, str] = {}
    with written_row_by_row(out) as file, progress("images", len(paths)) as advance:
        writer = csv.writer(file, lineterminator="\n")
        answers = AnswerWriter(
            output,
            out.parent,
            [str(path) for path in paths],
            overlays=asked.overlays,
            transform=predictor.metadata.transform,
        )
        writer.writerow(answers.header)

        def on_error(path: str, error: ImageError) -> None:
            broken[path] = str(error)
            advance()

        places = enumerate(paths)
        for answer in predictor.predict(paths, asked.batch_size, on_error):
            # Images that cannot be read keep their index.
            index = next(place for place, path in places if str(path) == answer.path)
            writer.writerows(answers.rows(index, answer))
            advance()
    write_objects(asked.format, out, output, [str(path) for path in paths if str(path) not in broken])
    print(f"{len(paths) - len(broken):,} images: {out}")
    if broken:
        lines = "\n".join(f"  {line}" for line in broken.values())
        raise InputError(f"{len(broken):,} of {len(paths):,} images could not be read, and are not in {out}:\n{lines}")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab infer",
        description="Predict images with a file of cnnlab export or cnnlab quantize; torch is not needed for it.",
    )
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", metavar="FILE", help="the table (results/NAME/predictions.csv beside MODEL)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once (32)")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help=f"of {', '.join(PROVIDERS)}: cuda or cpu")
    parser.add_argument("--threads", type=int, help="how many the CPU uses (all)")
    parser.add_argument("--conf", type=float, metavar="SCORE", help="the least score of an object, 0..1 (all objects)")
    parser.add_argument("--format", default="csv", metavar="NAME", help=f"{', '.join(FORMATS)}: files for other tools")
    parser.add_argument("--verify", action="store_true", help="refuse a file that its certificate was not made for")
    parser.add_argument("--overlays", action="store_true", help="draw masks over the images, too")
    return parser
