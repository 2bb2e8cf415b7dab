import random

import numpy as np
import pytest

from cnnlab.data import packed
from cnnlab.data.packed import Codes, Strings, places_in


def test_texts_are_found_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_AT_ONCE", 7)
    draw = random.Random(0)
    texts = [f"{draw.randrange(40)}é" for _ in range(60)]
    wanted = [f"{draw.randrange(60)}é" for _ in range(50)]
    last = {text: place for place, text in enumerate(texts)}
    for own in (Strings.of(texts), Strings.of(texts[::-1]).take(np.arange(60)[::-1])):
        assert places_in(own, iter(wanted)).tolist() == [last.get(text, -1) for text in wanted]
    assert places_in(Strings.of(()), wanted).tolist() == [-1] * 50
    assert places_in(Strings.of(texts), ()).tolist() == []


def test_texts_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "hash", lambda text: 1, raising=False)
    assert places_in(Strings.of(["a", "b"]), ["c", "b"]).tolist() == [-1, 1]


def test_which_texts_are_filled() -> None:
    texts = Strings.of(["", "a", "", "bc"])
    assert texts.filled().tolist() == [False, True, False, True]
    assert texts.take(np.array([3, 2, 1])).filled().tolist() == [True, False, True]
    assert Strings.of(()).filled().tolist() == []


def test_columns_are_joined() -> None:
    parts = [Codes.of(["x", "y", "x"]), Codes.of(["z", "y"]), Codes.of(())]
    joined = Codes.joined(parts)
    assert list(joined) == ["x", "y", "x", "z", "y"]
    assert sorted(joined.values) == ["x", "y", "z"]
