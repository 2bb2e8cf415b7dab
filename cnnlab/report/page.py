"""The HTML page: the facts about the runs, inserted into the template."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from cnnlab.errors import InputError
from cnnlab.outputs import OUTPUTS
from cnnlab.report import charts
from cnnlab.report.facts import Facts, Series
from cnnlab.report.sections import sections_of
from cnnlab.run import Run
from cnnlab.writing import write_atomically

_MARK = '<meta name="generator" content="cnnlab report">'
_LARGE = 200_000
"""Images with more bytes are compressed lossily."""
_WIDEST = 16383
"""WebP's limit, in pixels."""
_HERE = Path(__file__).parent
_RATES = "learning rate"
_WIDE = 1.5
"""Images with a greater width / height have parts side by side."""


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write one self-contained HTML file about a run, or about several runs side by side.

    An existing report is replaced, any other file is not.

    Raises:
        InputError: If a folder is not a run, or if the path exists and is not a report.
    """
    if path.exists() and (path.is_dir() or _MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise InputError(f"{path} exists and is no report of cnnlab: give another --out")
    names = [run.folder.absolute().name for run in runs]
    # Runs with equal names are distinguished by their folders.
    facts = [
        Facts(run, name if names.count(name) == 1 else str(run.folder)) for run, name in zip(runs, names, strict=True)
    ]
    write_atomically(path, _rendered(facts, path).encode(errors="backslashreplace"))


def picture_page(title: str, pictures: Mapping[str, Path], path: Path) -> None:
    """Write one HTML file of images, each with its heading.

    Args:
        title: The page's title.
        pictures: PNG files by their headings.
        path: The file.
    """
    write_atomically(path, _filled("pictures.html.jinja", title=title, pictures=pictures).encode())


def _filled(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # No training needs it before its end.

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, share=_share, inline=_inlined, is_wide=_is_wide)
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(mark=_MARK, style=style, **values)


def _rendered(facts: Sequence[Facts], path: Path) -> str:
    settings = _compared([one.config for one in facts])
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return _filled(
        "page.html.jinja",
        runs=facts,
        sections=sections_of(facts),
        shares={name for kind in OUTPUTS.values() for name in kind.shares},
        one=facts[0] if len(facts) == 1 else None,
        title=" and ".join(one.name for one in facts) if len(facts) <= 3 else f"{len(facts)} runs",
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=_compared([one.results for one in facts]),
        better=partial(_better, set.union(*(one.lower_is_better for one in facts)), _comparable(facts)),
        different=[split for split, same in _comparable(facts).items() if not same],
        curves=_curves(facts),
        charts=charts,
        settings={key: values for key, values in settings.items() if any(value != values[0] for value in values)},
        relative=lambda file: quote(Path(os.path.relpath(file, path.parent)).as_posix()),
    )


def _compared(columns: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Each key of any column, with each column's value or None."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return {key: [column.get(key) for column in columns] for key in keys}


def _comparable(facts: Sequence[Facts]) -> dict[str, bool]:
    """Whether the runs were measured on the same images, by split."""
    return {split: len({one.images_of(split) for one in facts}) == 1 for split in ("val", "test")}


def _better(lower: set[str], comparable: Mapping[str, bool], name: str, values: Sequence[float | None]) -> int | None:
    """The index of the run with the best value of a metric; None if it is not known.

    Args:
        lower: The metrics whose lower values are better.
        comparable: Whether the runs were measured on the same images, by split.
        name: The metric, with its split.
        values: Each run's value.
    """
    if not comparable.get(name.partition("/")[0], True):
        return None
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(set(known)) < 2:
        return None
    return list(values).index(min(known) if name.rpartition("/")[2] in lower else max(known))


def _curves(facts: Sequence[Facts]) -> list[str]:
    """A chart for each metric: for one run training and validation together, for several runs one line each."""
    grouped: dict[str, dict[str, Series]] = {}
    for one in facts:
        for name, series in one.curves.items():
            metric = _metric(name) if len(facts) == 1 else name
            grouped.setdefault(metric, {})[name if len(facts) == 1 else one.name] = series
    if len(facts) > 1:
        grouped = {name: series for name, series in grouped.items() if name.startswith("val/")}
    first = ("loss", "val/loss")
    drawn = []
    for title in sorted(grouped, key=lambda name: (name not in first, name == _RATES, name)):
        lines = grouped[title]
        # With one run, a single line needs no name besides the title.
        alone = len(facts) == 1 and len(lines) == 1
        drawn.append(charts.lines(lines, next(iter(lines)) if alone else title, legend=not alone))
    return drawn


def _metric(name: str) -> str:
    """The chart that a metric is drawn in.

    >>> _metric("train/loss_step"), _metric("val/loss"), _metric("lr-AdamW/pg1")
    ('loss', 'loss', 'learning rate')
    """
    return _RATES if name.startswith("lr-") else name.partition("/")[2].removesuffix("_step") or name


def _number(value: Any) -> str:
    """A value as text in a table.

    >>> _number(0.123456789), _number(12), _number(None), _number("0.5"), _number("cat")
    ('0.1235', '12', '', '0.5', 'cat')
    """
    if value is None:
        return ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(value) if isinstance(value, bool) or number.is_integer() else f"{number:.4g}"


def _share(value: str) -> str:
    """A number in 0..1 as a percentage.

    >>> _share("0.9876"), _share("1.0"), _share("8e-05")
    ('98.8 %', '100 %', '0.008 %')
    """
    return f"{float(value) * 100:.3g} %"


def _is_wide(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.width > _WIDE * picture.height


def _inlined(path: Path) -> str:
    """An image as a data URL."""
    content, kind = path.read_bytes(), "png"
    if len(content) > _LARGE:
        with Image.open(path) as picture:
            if max(picture.size) <= _WIDEST:
                file = io.BytesIO()
                picture.convert("RGB").save(file, format="webp", quality=80)
                content, kind = file.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
