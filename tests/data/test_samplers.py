from itertools import chain

import numpy as np
import pytest

from cnnlab.data.samplers import Draw, EvalSampler, TrainSampler
from cnnlab.errors import InputError


def epoch_of(sampler: TrainSampler, epoch: int) -> list[list[Draw]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_has_each_sample_once_in_an_order_of_its_own() -> None:
    sampler = TrainSampler(10, batch_size=4, seed=0, drop_last=False)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(sampler) == 3
    assert sorted(index for _, index, _ in chain(*first)) == list(range(10))
    assert {epoch for epoch, _, _ in chain(*second)} == {1}
    assert [index for _, index, _ in chain(*first)] != [index for _, index, _ in chain(*second)]


def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(batch) for batch in TrainSampler(10, 4, seed=0)] == [4, 4]
    assert [len(batch) for batch in TrainSampler(3, 4, seed=0)] == [3]


@pytest.mark.parametrize("drop_last", [True, False])
def test_two_processes_see_together_what_one_sees_with_twice_the_batch(drop_last: bool) -> None:
    alone = epoch_of(TrainSampler(37, 8, seed=3, drop_last=drop_last), 2)
    ranks = [
        epoch_of(TrainSampler(37, 4, seed=3, drop_last=drop_last, rank=rank, world_size=2), 2) for rank in range(2)
    ]
    assert [list(chain(*step)) for step in zip(*ranks, strict=True)] == alone


def test_a_resumed_epoch_goes_on_and_the_next_is_whole() -> None:
    whole = TrainSampler(20, 4, seed=0)
    resumed = TrainSampler(20, 4, seed=0)
    resumed.resume_at(epoch=2, samples=12)
    resumed.set_epoch(0)  # Lightning says so before it has restored its own progress.
    assert list(resumed) == epoch_of(whole, 2)[3:]
    assert len(resumed) == 5
    assert epoch_of(resumed, 3) == epoch_of(whole, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_each_sample_exactly_once(world_size: int) -> None:
    parts = [list(chain(*EvalSampler(13, 3, rank=rank, world_size=world_size))) for rank in range(world_size)]
    assert sorted(chain(*parts)) == list(range(13))
    assert all(part == sorted(part) for part in parts)


def test_processes_evaluate_the_batches_of_one() -> None:
    """What is predicted of an image may differ in the last digit with the others in its batch."""
    alone = list(EvalSampler(13, 3))
    assert alone == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]
    assert [list(EvalSampler(13, 3, rank=rank, world_size=2)) for rank in (0, 1)] == [alone[::2], [*alone[1::2], []]]


def test_a_process_without_samples_has_an_empty_batch() -> None:
    sampler = EvalSampler(2, 3, rank=1, world_size=2)
    assert len(sampler) == 1
    assert list(sampler) == [[]]
    assert sampler.indices == []


def test_a_step_without_a_sample_for_each_process_is_left_out() -> None:
    assert [len(list(TrainSampler(10, 3, seed=0, drop_last=False, rank=rank, world_size=3))) for rank in range(3)] == [
        1
    ] * 3
    assert len(TrainSampler(12, 3, seed=0, drop_last=False, world_size=3)) == 2
    with pytest.raises(InputError, match="2 training samples for 3 processes"):
        TrainSampler(2, 3, seed=0, world_size=3)


def test_two_processes_draw_together_what_one_draws_with_weights() -> None:
    """Under DDP Lightning replaces a weighted sampler (Lightning-AI/pytorch-lightning issues 12866 and 21447)."""
    weights = np.array([1.0] * 30 + [5.0] * 10)
    alone = epoch_of(TrainSampler(40, 8, seed=3, weights=weights), 2)
    parts = [epoch_of(TrainSampler(40, 4, seed=3, weights=weights, rank=rank, world_size=2), 2) for rank in (0, 1)]
    assert alone == [one + other for one, other in zip(*parts, strict=True)]
    drawn = [index for _, index, _ in chain(*alone)]
    assert 23 <= sum(index >= 30 for index in drawn) <= 27
    assert len(set(chain(*alone))) == len(drawn) > len(set(drawn))
