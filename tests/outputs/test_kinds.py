"""What all kinds of answers have in common: they travel in files, and decode as the network's decoder does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnlab.errors import InputError
from cnnlab.models.decoding import Decoder, LabelDecoder, MaskDecoder, OrdinalDecoder, ValueDecoder
from cnnlab.outputs import OUTPUTS, Labels, Masks, Output, Values, create_output

NAMES = ["a", "b", "c"]
CASES: list[tuple[Output, Decoder, tuple[int, ...]]] = [
    (Labels(NAMES), LabelDecoder(), (5, 3)),
    (Labels(NAMES, multi_label=True), LabelDecoder(multi_label=True), (5, 3)),
    (Masks(NAMES, ignore_index=7), MaskDecoder(ignore_index=7), (5, 3, 4, 6)),
    (Values(["v", "w"], False, [1.0, -20.0], [2.0, 0.5]), ValueDecoder([1.0, -20.0], [2.0, 0.5]), (5, 2)),
    (Values(["v", "w"], True, [1.0, -20.0], [2.0, 0.5]), ValueDecoder([1.0, -20.0], [2.0, 0.5], spread=True), (5, 4)),
    (Values(["v"], True, lowest=-1), OrdinalDecoder(-1, 5), (5, 4)),
]
IDS = ["labels", "several labels", "masks", "values", "values with spread", "levels"]
both = pytest.mark.parametrize(("output", "decoder", "shape"), CASES, ids=IDS)


def raw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    # Large ones among them: a softmax without care overflows.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-1, 2, shape[-1])


@both
def test_a_file_s_reader_decodes_as_the_network_does(output: Output, decoder: Decoder, shape: tuple[int, ...]) -> None:
    outputs = raw(shape).clamp(-120, 120)
    expected = decoder(outputs)
    found = output.decode({output.raw_arrays[0]: outputs.numpy()})
    assert tuple(found) == tuple(expected) == output.arrays
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=2e-5, atol=1e-6)
        assert found[name].dtype == np.float32
        assert np.isfinite(found[name]).all()


@both
def test_it_is_made_again_of_json(output: Output, decoder: Decoder, shape: tuple[int, ...]) -> None:
    again = create_output(json.loads(json.dumps(output.metadata())))
    assert type(again) is type(output)
    assert vars(again) == vars(output)
    outputs = {output.raw_arrays[0]: raw(shape).clamp(-120, 120).numpy()}
    for name, value in output.decode(outputs).items():
        np.testing.assert_array_equal(again.decode(outputs)[name], value)


@both
def test_the_difference_is_the_greatest_of_all_numbers_and_nan_is_no_small_one(
    output: Output, decoder: Decoder, shape: tuple[int, ...]
) -> None:
    expected = {name: value.numpy() for name, value in decoder(raw(shape).clamp(-9, 9)).items()}
    for shift in (0.0, 0.25, np.nan):
        for name in expected:
            found = {one: value.copy() for one, value in expected.items()}
            found[name].flat[-1] += np.float32(shift)
            np.testing.assert_allclose(output.difference(expected, found), shift, rtol=1e-4)


@both
def test_there_is_an_answer_for_each_image(output: Output, decoder: Decoder, shape: tuple[int, ...]) -> None:
    arrays = {name: value.numpy() for name, value in decoder(raw(shape).clamp(-9, 9)).items()}
    answers = output.answers(arrays, [f"{i}.png" for i in range(5)], [None] * 5)
    assert [answer.path for answer in answers] == [f"{i}.png" for i in range(5)]
    for answer in answers:
        (row,) = output.rows(answer, None, {})
        assert len(row) == len(output.columns)
        assert output.caption(answer, None)


def test_another_kind_and_other_settings_are_refused() -> None:
    assert {kind: output.kind for kind, output in OUTPUTS.items()} == {kind: kind for kind in OUTPUTS}
    for metadata in ({"kind": "sounds", "names": NAMES}, {"kind": "labels", "colour": "red"}, {"names": NAMES}):
        with pytest.raises(InputError, match="this cnnlab knows no answers such as"):
            create_output(metadata)
