"""The arguments that a class takes, whoever in its ancestry takes them."""

from __future__ import annotations

from typing import Any

import pytest

from cnnlab.errors import InputError
from cnnlab.imports import by_path, parameters_of
from cnnlab.tasks import Classification, Distillation


class Base:
    def __init__(self, first: int, second: int = 2, *rest: int) -> None: ...


class HandsOn(Base):
    def __init__(self, *, own: str = "", second: int = 3, **kwargs: Any) -> None: ...


class HandsNothingOn(HandsOn):
    def __init__(self, other: str = "") -> None: ...


class WithoutAny(HandsOn):
    """Takes what its base takes."""


class Mixin:
    def __init__(self, **kwargs: Any) -> None: ...


class Mixed(Mixin, HandsOn):
    """The mixin comes first, and hands everything on."""


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Base, ["first", "second"]),
        (HandsOn, ["own", "second", "first"]),
        (HandsNothingOn, ["other"]),
        (WithoutAny, ["own", "second", "first"]),
        (Mixed, ["own", "second", "first"]),
    ],
)
def test_all_arguments_are_found(kind: type, names: list[str]) -> None:
    assert list(parameters_of(kind)) == names


def test_the_nearest_default_counts() -> None:
    assert parameters_of(HandsOn)["second"].default == 3
    assert parameters_of(Base)["second"].default == 2


def test_a_student_takes_what_a_classifier_takes() -> None:
    """Contradictions with the data were refused for Classification alone: others hand the number of classes on."""
    own = parameters_of(Classification)
    assert {"network", "num_classes", "class_names", "channels", "lr", "init_from", "multi_label"} <= set(own)
    assert set(parameters_of(Distillation)) == {*own, *list(parameters_of(Distillation))[:9]}
    assert not {"self", "kwargs"} & set(parameters_of(Distillation))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "'nowhere' is no import path"),
        ("no_such_package.thing", "module 'no_such_package' is neither in the working folder"),
        ("pathlib.PurePth", "has no 'PurePth': did you mean 'PurePath'"),
    ],
)
def test_what_cannot_be_imported_is_named(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_path(path)
