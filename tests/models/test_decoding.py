"""From raw outputs to answers, and how difficult an image is, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from cnnlab.models.decoding import Decoder, LabelDecoder, MaskDecoder, OrdinalDecoder, ValueDecoder

LOGITS = tensor([[2.0, 0.0, -1.0], [0.0, 0.1, 0.2], [-3.0, 3.0, 0.0]])


def test_labels_are_difficult_by_cross_entropy_and_by_the_best_probability() -> None:
    decoder = LabelDecoder()
    targets = tensor([1, -1, 1])
    answers = decoder(LOGITS)
    found = decoder.difficulty(answers, targets)
    losses = cross_entropy(LOGITS[[0, 2]], targets[[0, 2]], reduction="none")
    torch.testing.assert_close(found.error[[0, 2]], losses)
    assert found.error[1].isnan()
    assert found.uncertainty is not None
    torch.testing.assert_close(found.uncertainty, 1 - LOGITS.softmax(1).amax(1))


def test_several_labels_are_difficult_by_the_mean_over_the_classes() -> None:
    decoder = LabelDecoder(multi_label=True)
    targets = tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = decoder.difficulty(decoder(LOGITS), targets)
    losses = binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").mean(dim=1)
    torch.testing.assert_close(found.error, losses)
    assert found.uncertainty is not None
    # The second image's probabilities are all about a half.
    assert found.uncertainty.argmax() == 1
    assert decoder.difficulty(decoder(LOGITS), tensor([-1, -1, -1])).error.isnan().all()


def test_masks_are_difficult_by_the_pixels_that_count() -> None:
    decoder = MaskDecoder(ignore_index=255)
    classes = tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    answers = decoder(torch.eye(2)[classes].permute(0, 3, 1, 2) * 4)
    targets = tensor([[[0, 0], [1, 255]], [[255, 255], [255, 255]]])
    found = decoder.difficulty(answers, targets)
    assert found.error[0].item() == pytest.approx(1 / 3)
    # Where nothing counts nothing is wrong or right, and the uncertainty is that of the whole image.
    assert found.error[1].isnan()
    expected = 1 - 1 / (1 + math.exp(-4))
    torch.testing.assert_close(found.uncertainty, tensor([expected, expected]))
    compact = decoder.compact(answers)
    assert set(compact) == {"classes"}
    assert compact["classes"].equal(classes)


def test_values_are_difficult_in_standard_deviations() -> None:
    decoder = ValueDecoder([10.0, 0.0], [2.0, 0.5], spread=True)
    answers = decoder(tensor([[1.0, -2.0, 0.0, math.log(4.0)], [0.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(answers["values"], tensor([[12.0, -1.0], [10.0, 0.0]]))
    torch.testing.assert_close(answers["spreads"], tensor([[2.0, 1.0], [2.0, 0.5]]))
    found = decoder.difficulty(answers, tensor([[8.0, torch.nan], [torch.nan, torch.nan]]))
    assert found.error[0].item() == pytest.approx(2.0)
    assert found.error[1].isnan()
    torch.testing.assert_close(found.uncertainty, tensor([1.5, 1.0]))
    assert ValueDecoder([0.0], [1.0]).difficulty({"values": tensor([[1.0]])}, tensor([[0.0]])).uncertainty is None


def test_levels_are_difficult_by_how_many_they_are_off() -> None:
    decoder = OrdinalDecoder(lowest=1, levels=4)
    outputs = tensor([[9.0, 9.0, -9.0], [-9.0, -9.0, -9.0]])
    answers = decoder(outputs)
    assert answers["values"].tolist() == [[3.0], [1.0]]
    assert decoder.difficulty(answers, tensor([[1.0], [1.0]])).error.tolist() == [2.0, 0.0]
    assert decoder.scores(outputs).tolist() == [[9.0], [-27.0]]


@pytest.mark.parametrize(
    ("decoder", "outputs"),
    [
        (LabelDecoder(), LOGITS),
        (LabelDecoder(multi_label=True), LOGITS),
        (MaskDecoder(), LOGITS.T[None, :, :, None]),
        (ValueDecoder([10.0], [2.0]), LOGITS[:, :1]),
        (ValueDecoder([10.0], [2.0], spread=True), LOGITS[:, :2]),
    ],
)
def test_raw_outputs_come_back_for_the_loss_of_a_file(decoder: Decoder, outputs: Tensor) -> None:
    answers = decoder(outputs)
    again = decoder.undo(answers)
    assert again.shape == outputs.shape
    for name, value in decoder(again).items():
        torch.testing.assert_close(value, answers[name], rtol=1e-4, atol=1e-6)
    certain = {name: torch.zeros_like(value) for name, value in answers.items()}
    assert decoder.undo(certain).isfinite().all()


@pytest.mark.parametrize("decoder", [LabelDecoder(), LabelDecoder(multi_label=True), MaskDecoder()])
def test_half_precision_is_decoded_in_float32(decoder: Decoder) -> None:
    shape = (2, 3, 2, 2) if isinstance(decoder, MaskDecoder) else (2, 3)
    for dtype in (torch.float16, torch.bfloat16):
        (value,) = decoder(torch.full(shape, 6e4).to(dtype)).values()
        assert value.dtype == torch.float32
        assert value.isfinite().all()
