"""One class, or several, an image: what tables, pictures and words say of them."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlab.errors import InputError
from cnnlab.outputs import ClassPrediction, Labels

NAMES = ["cat", "dog", "owl"]
CAT, DOG, UNKNOWN = np.array(0), np.array(1), np.array(-1)
ONE, SEVERAL = Labels(NAMES), Labels(NAMES, multi_label=True)


def answer(output: Labels, *probabilities: float) -> ClassPrediction:
    arrays = {"probabilities": np.array([probabilities], dtype=np.float32)}
    (found,) = output.answers(arrays, ["a.jpg"], [None])
    assert isinstance(found, ClassPrediction)
    return found


def test_the_most_probable_class_is_the_answer() -> None:
    found = answer(ONE, 0.2, 0.7, 0.1)
    assert (found.path, found.labels, found.names) == ("a.jpg", [1], ["dog"])


@pytest.mark.parametrize(
    ("probabilities", "names"), [((0.5, 0.49, 0.9), ["cat", "owl"]), ((0.1, 0.1, 0.1), []), ((1.0, 1.0, 1.0), NAMES)]
)
def test_of_several_labels_all_of_at_least_a_half_are(probabilities: tuple[float, ...], names: list[str]) -> None:
    assert answer(SEVERAL, *probabilities).names == names


def test_rows_have_a_cell_for_each_column() -> None:
    assert ONE.columns == ["target", "label", "name", *NAMES]
    found = answer(ONE, 0.2, 0.7, 0.1)
    assert ONE.rows(found, CAT, {}) == [["0", "1", "dog", "0.2", "0.7", "0.1"]]
    assert ONE.rows(found, None, {}) == [["", "1", "dog", "0.2", "0.7", "0.1"]]
    several = answer(SEVERAL, 0.5, 0.1, 0.75)
    assert SEVERAL.rows(several, np.array([0.0, 1.0, 1.0]), {}) == [["1;2", "0;2", "cat;owl", "0.5", "0.1", "0.75"]]
    # An image without any label has none; that is another thing than labels that are not known.
    assert SEVERAL.rows(answer(SEVERAL, 0.1, 0.1, 0.1), np.zeros(3), {})[0][:3] == ["", "", ""]


def test_a_table_of_single_images_has_truth_and_probabilities() -> None:
    found = answer(ONE, 0.25, 0.75, 0.0)
    assert ONE.describe(found, CAT) == {
        "truth": "cat",
        "predicted": "dog",
        "probability": 0.75,
        "probability of the truth": 0.25,
    }
    assert ONE.describe(found, None) == {"predicted": "dog", "probability": 0.75}
    several = SEVERAL.describe(answer(SEVERAL, 0.5, 0.1, 0.75), np.zeros(3))
    assert several == {"truth": "-", "predicted": "cat; owl"}
    assert set(ONE.shares) <= set(ONE.describe(found, CAT))


def test_captions_name_the_truth_where_it_is_another() -> None:
    found = answer(ONE, 0.2, 0.7, 0.1)
    assert ONE.caption(found, DOG) == ONE.caption(found, None) == "dog 70%"
    assert ONE.caption(found, CAT) == "dog 70%\nis cat"
    assert [ONE.is_right(found, truth) for truth in (DOG, CAT, None)] == [True, False, None]
    assert SEVERAL.caption(answer(SEVERAL, 0.5, 0.1, 0.75), np.array([1.0, 0.0, 0.0])) == "cat; owl\nis cat"


def test_training_images_show_mixtures() -> None:
    assert ONE.label(CAT) == "cat"
    assert ONE.label(np.array([0.25, 0.0, 0.75])) == "cat 25%\nowl 75%"
    assert SEVERAL.label(np.zeros(3)) == "-"


def test_what_is_not_known_is_no_truth() -> None:
    assert ONE.known(UNKNOWN) is None
    assert ONE.known(CAT) is CAT
    truth = np.zeros(3)
    assert SEVERAL.known(truth) is truth


def test_explanations_are_of_the_true_class_where_there_is_one() -> None:
    assert ONE.to_explain([CAT, None, DOG]) == [0, None, 1]
    assert SEVERAL.to_explain([np.array([0.0, 1.0, 1.0])]) == [None]
    assert (ONE.group(DOG), SEVERAL.group(np.zeros(3))) == (1, None)
    assert ONE.certainty({"probabilities": np.array([[0.2, 0.7, 0.1]])}, 1) == "70%"


def test_classes_are_found_by_name() -> None:
    assert ONE.index_of("owl") == 2
    with pytest.raises(InputError, match="there is no class 'dgo': did you mean 'dog'"):
        ONE.index_of("dgo")
