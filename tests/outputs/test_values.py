"""Numbers with a unit: tables and words in it, and what a bare network's outputs stand for."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlab.errors import InputError
from cnnlab.outputs import ValuePrediction, Values

ALONE = Values(["age"], spread=True, mean=[50.0], std=[10.0])
BOTH = Values(["height", "width"], mean=[1.0, 2.0], std=[0.5, 4.0])


def answer(output: Values, *values: float, spreads: tuple[float, ...] = ()) -> ValuePrediction:
    arrays = {"values": np.array([values], dtype=np.float32)}
    arrays |= {"spreads": np.array([spreads], dtype=np.float32)} if spreads else {}
    (found,) = output.answers(arrays, ["a.jpg"], [None])
    assert isinstance(found, ValuePrediction)
    return found


def test_rows_have_a_cell_for_each_column() -> None:
    assert ALONE.columns == ["target age", "age", "spread age"]
    assert ALONE.rows(answer(ALONE, 42.5, spreads=(3.25,)), np.array([40.0]), {}) == [["40", "42.5", "3.25"]]
    assert BOTH.columns == ["target height", "height", "target width", "width"]
    found = answer(BOTH, 1.5, 7.0)
    assert BOTH.rows(found, np.array([1.0, np.nan]), {}) == [["1", "1.5", "", "7"]]
    assert BOTH.rows(found, None, {}) == [["", "1.5", "", "7"]]


def test_a_table_of_single_images_has_the_error_of_each_value() -> None:
    found = ALONE.describe(answer(ALONE, 42.5, spreads=(3.25,)), np.array([40.0]))
    assert found == {"truth": "40", "predicted": "42.5", "spread": "3.25", "error": "2.5"}
    assert BOTH.describe(answer(BOTH, 1.5, 7.0), None) == {"height, predicted": "1.5", "width, predicted": "7"}
    known = BOTH.describe(answer(BOTH, 1.5, 7.0), np.array([1.0, np.nan]))
    assert (known["height, error"], known["width, truth"], known["width, error"]) == ("0.5", "", "")


def test_captions_have_spread_and_truth() -> None:
    found = answer(ALONE, 42.5, spreads=(3.25,))
    assert ALONE.caption(found, None) == "age 42.5 ±3.2"
    assert ALONE.caption(found, np.array([40.0])) == "age 42.5 ±3.2\nis 40"
    assert ALONE.is_right(found, np.array([42.5])) is None
    assert BOTH.label(np.array([1.0, 2.5])) == "height 1\nwidth 2.5"


def test_a_target_is_known_where_one_of_its_values_is() -> None:
    assert BOTH.known(np.array([np.nan, np.nan])) is None
    truth = np.array([np.nan, 1.0])
    assert BOTH.known(truth) is truth


def test_the_first_value_is_explained() -> None:
    assert BOTH.to_explain([None, np.array([1.0, 2.0])]) == [0, 0]
    assert BOTH.certainty({"values": np.array([[1.5, 7.0]])}, 1) == "7"
    assert BOTH.group(np.array([1.0, 2.0])) is None
    with pytest.raises(InputError, match="there is no value 'hight': did you mean 'height'"):
        BOTH.index_of("hight")


def test_a_bare_networks_outputs_are_in_standard_deviations() -> None:
    found = ALONE.decode({"outputs": np.array([[0.5, np.log(0.09)]])})
    np.testing.assert_allclose(found["values"], [[55.0]], rtol=1e-6)
    np.testing.assert_allclose(found["spreads"], [[3.0]], rtol=1e-6)


def test_a_level_is_passed_with_a_probability_of_a_half() -> None:
    """By hand: grades 2 to 5, of which 2 are passed with probabilities 0.9 and 0.5, and the last with 0.2."""
    above = np.array([0.9, 0.5, 0.2])
    found = Values(["grade"], spread=True, lowest=2).decode({"outputs": np.log(above / (1 - above))[None]})
    assert found["values"].tolist() == [[4.0]]
    shares = np.array([0.1, 0.4, 0.3, 0.2])
    mean = (shares * np.arange(4)).sum()
    expected = np.sqrt((shares * (np.arange(4) - mean) ** 2).sum())
    np.testing.assert_allclose(found["spreads"], [[expected]], rtol=1e-5)
