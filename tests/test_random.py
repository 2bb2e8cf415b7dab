import numpy as np
import pytest

from cnnlab.random import permutation, uniform


def draw(seed: int = 0, epoch: int = 0, count: int = 4, size: int = 1000) -> np.ndarray:
    return uniform(seed, np.full(size, epoch), np.arange(size), count)


def test_a_draw_depends_on_nothing_but_seed_epoch_and_index() -> None:
    shuffled = np.random.default_rng(0).permutation(1000)
    assert (uniform(0, np.zeros(1000, int), shuffled, 4) == draw()[shuffled]).all()
    assert (uniform(0, np.zeros(3, int), np.array([5, 6, 7]), 2) == draw(count=2)[5:8]).all()


@pytest.mark.parametrize("other", [draw(seed=1), draw(epoch=1), np.roll(draw(), 1, axis=0)])
def test_any_other_key_gives_other_numbers(other: np.ndarray) -> None:
    assert not np.isclose(other, draw()).any(axis=1).all()
    assert abs(np.corrcoef(other[:, 0], draw()[:, 0])[0, 1]) < 0.15


def test_the_numbers_are_uniform() -> None:
    numbers = draw(size=50_000)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi square, 19 degrees, p = 0.001
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.02


def test_seed_and_epoch_are_not_interchangeable() -> None:
    assert not (draw(seed=1, epoch=2) == draw(seed=2, epoch=1)).any()


def test_permutations_differ_by_epoch_and_are_repeatable() -> None:
    first = permutation(0, 0, 100)
    assert sorted(first) == list(range(100))
    assert (first == permutation(0, 0, 100)).all()
    assert (first != permutation(0, 1, 100)).any()
    assert (first != permutation(1, 0, 100)).any()
