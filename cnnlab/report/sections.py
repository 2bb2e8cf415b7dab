"""The report's sections, in order; each is shown if its files exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cnnlab.report.facts import Facts


class Section(NamedTuple):
    """A section of the report; its template is sections/KEY.html.jinja."""

    key: str
    """Its anchor in the page's address."""
    title: str
    """Its heading."""
    has_content: Callable[[Facts], object] | None = None
    """Whether a run has content for it; None for a section of all runs together, which is always shown."""


SECTIONS = (
    Section("figures", "Main figures"),
    Section("curves", "Curves"),
    Section("values", "Values", lambda run: run.table("value_pairs")),
    Section("objects", "Objects", lambda run: run.table("error_kinds")),
    Section("classes", "Classes", lambda run: run.table("classes")),
    Section("confusion", "Confusions", lambda run: run.confusion),
    Section("calibration", "Calibration", lambda run: run.table("reliability")),
    Section("errors", "Hardest images", lambda run: run.errors[1]),
    Section("gradcam", "Where it looks", lambda run: run.picture("gradcam.png")),
    Section("validation", "Validation images", lambda run: run.picture("validation.png")),
    Section("configuration", "Configuration"),
    Section("environment", "Environment"),
    Section("files", "Files"),
)
"""All sections; a new kind of answer adds a line and a template."""


def sections_of(runs: Sequence[Facts]) -> list[Section]:
    """The sections of a report; with several runs, without sections that only a single run can have."""
    alone = runs[0] if len(runs) == 1 else None
    return [s for s in SECTIONS if s.has_content is None or (alone is not None and s.has_content(alone))]
