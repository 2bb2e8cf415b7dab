"""What the masks of a whole set have: their values, and whether one value means the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.data.mask_values import NO_VALUE, MaskOpener, MaskValues, Value, color_codes, read_mask, show_code
from cnnlab.errors import InputError
from cnnlab.image_files import ImageError


class MaskCounts(NamedTuple):
    """The values in a mask."""

    codes: npt.NDArray[np.int64]
    """(N,) distinct, ascending: see mask_values.color_codes."""
    counts: npt.NDArray[np.int64]
    """(N,) pixels of each."""
    colored: bool
    """Whether they are colors."""
    lossy: bool
    """Whether the file's format may have changed values."""
    colors: Mapping[int, int]
    """The color of each number, of a palette."""


@dataclass
class MaskSurvey:
    """The values in all masks."""

    of: dict[str, MaskCounts] = field(default_factory=dict)
    """By file."""
    broken: dict[str, str] = field(default_factory=dict)
    """The errors of files that cannot be read."""

    def only(self, paths: Sequence[str]) -> MaskSurvey:
        """The survey of some of the masks."""
        return MaskSurvey({path: self.of[path] for path in paths if path in self.of})


def survey_masks(paths: Sequence[str], colored: bool = False, opener: MaskOpener = read_mask) -> MaskSurvey:
    """Read all masks, in threads.

    Args:
        paths: Their files.
        colored: See mask_values.read_mask.
        opener: Reads one.
    """
    survey = MaskSurvey()

    def read(path: str) -> MaskCounts | str:
        try:
            mask = opener(path, colored)
        except ImageError as error:
            return str(error)
        codes, counts = np.unique(color_codes(mask.values), return_counts=True)
        used = [code for code in codes.tolist() if code < len(mask.palette)] if mask.values.ndim == 2 else []
        palette = dict(zip(used, color_codes(mask.palette[None, used])[0].tolist(), strict=True))
        return MaskCounts(codes, counts, mask.values.ndim == 3, mask.lossy, palette)

    with ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(read, paths), strict=True):
            if isinstance(found, str):
                survey.broken[path] = found
            else:
                survey.of[path] = found
    if survey.broken and not survey.of:
        first = next(iter(survey.broken.values()))
        raise InputError(f"none of the {len(paths)} masks can be read: {first}")
    return survey


def check_meanings(survey: MaskSurvey, ignored: Sequence[int]) -> None:
    """Check that a value means the same in all masks, where nobody has said which value is which class.

    Args:
        survey: The masks, read as numbers.
        ignored: The codes that are ignored.

    Raises:
        InputError: If masks have colors, or different palettes; if a file's format changes values; or if the ignored
            value of the default seems to be a class, in all masks or in some.
    """
    for path, mask in survey.of.items():
        if mask.colored:
            colors = sorted({code for one in survey.of.values() if one.colored for code in one.codes.tolist()})
            raise InputError(
                f"{path}: the mask has colors: say in data.mask_values which color is which class, {_flag(colors)}"
            )
        if mask.lossy:
            raise InputError(
                f"{path}: the mask's format (such as JPEG) changes values: say which there were, and the nearest one "
                "counts, such as --data.mask_values '[0, 255]' --data.ignore_index null; or save masks as PNG"
            )
    _check_palettes(survey)
    if list(ignored) == [NO_VALUE]:
        _check_ignored(survey)


def _check_palettes(survey: MaskSurvey) -> None:
    known: dict[int, tuple[int, str]] = {}
    for path, mask in survey.of.items():
        for number, color in mask.colors.items():
            first, other = known.setdefault(number, (color, path))
            if first != color:
                colors = sorted({code for one in survey.of.values() for code in one.colors.values()})
                raise InputError(
                    f"the masks have different palettes: {number} is {show_code(first, True)} in {other}, and "
                    f"{show_code(color, True)} in {path}: if colors count, say {_flag(colors)}; if numbers do, say "
                    "--data.mask_values '[0, 1, ...]'"
                )


def _check_ignored(survey: MaskSurvey) -> None:
    """See whether 255, which nobody said is ignored, stands alone beside 0, as in masks of 0 and 255."""
    values = {path: set(mask.codes.tolist()) for path, mask in survey.of.items()}
    present = set().union(*values.values())
    if NO_VALUE in present and present <= {0, NO_VALUE}:
        raise _only_zero([NO_VALUE])
    if alone := [path for path, own in values.items() if own == {0, NO_VALUE}]:
        classes = sorted(present - {NO_VALUE})
        together = f"0, [{classes[1]}, {NO_VALUE}]" if len(classes) == 2 else "0, ..."
        every = ", ".join(map(str, classes))
        raise InputError(
            f"{len(alone)} of {len(values)} masks have nothing but 0 and the ignored {NO_VALUE}, such as {alone[0]}, "
            f"and the masks together have {every}: if {NO_VALUE} is a class there, say --data.mask_values "
            f"'[{together}]' --data.ignore_index null; if it is to be ignored, --data.mask_values '[{every}]'"
        )


def _only_zero(ignored: Sequence[int]) -> InputError:
    named = ", ".join(map(str, ignored))
    return InputError(
        f"the masks have nothing but 0 and the ignored {named}: for binary masks of 0 and {named} say "
        f"--data.mask_values '[0, {named}]' --data.ignore_index null"
    )


def find_values(survey: MaskSurvey, ignored: Sequence[int]) -> list[Value]:
    """The values of the masks, which must be 0, 1, 2, ... without the ignored ones.

    Raises:
        InputError: If there are other values, which may be mistakes or classes that are missing from the images; see
            check_meanings.
    """
    check_meanings(survey, ignored)
    example = {value: path for path, mask in survey.of.items() for value in mask.codes.tolist()}
    values = sorted(value for value in example if value not in ignored)
    if set(values) <= {0}:
        raise _only_zero(ignored or [NO_VALUE])
    expected = numbers_without(ignored, len(values))
    if values != expected:
        strange = next(value for value, number in zip(values, expected, strict=True) if value != number)
        shown = ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
        raise InputError(
            f"the masks have the values {shown} (such as {strange} in {example[strange]}), expected 0, 1, 2, ... "
            "without gaps: say which value is which class, --data.mask_values '[0, ...]', or name all classes if "
            "some are in no image, --data.class_names '[background, ...]'"
        )
    return [*values]


def numbers_without(ignored: Sequence[int], count: int) -> list[int]:
    """The first numbers from 0, without the ignored ones."""
    numbers = [number for number in range(count + len(ignored)) if number not in ignored]
    return numbers[:count]


def count_classes(
    survey: MaskSurvey, paths: Sequence[str], values: MaskValues, num_classes: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Count the pixels of each class in masks; those that cannot be read do not count.

    Args:
        survey: All masks, read as ``values`` needs.
        paths: Those that are counted.
        values: The mapping to classes.
        num_classes: K, the number of classes.

    Returns:
        (K,) the pixels of each class, and the number of ignored ones.

    Raises:
        ImageError: If a mask has a value without a class.
    """
    counts, ignored = np.zeros(num_classes, dtype=np.int64), 0
    for path in paths:
        if (mask := survey.of.get(path)) is not None:
            classes = values.find(mask.codes, path, mask.lossy, mask.counts)
            known = (classes >= 0) & (classes < num_classes)
            np.add.at(counts, classes[known], mask.counts[known])
            ignored += int(mask.counts[~known].sum())
    return counts, ignored


def _flag(colors: Sequence[int]) -> str:
    """An example of --data.mask_values with these colors."""
    shown = [show_code(code, True) for code in colors[:8]] + (["..."] if len(colors) > 8 else [])
    return f"--data.mask_values '[{', '.join(shown)}]'"
