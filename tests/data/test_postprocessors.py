"""What metrics compare."""

import pytest

from prompt_tuning.data import postprocessors


def test_labels_must_be_exact():
  labels = ("no", "yes")
  assert [postprocessors.class_id(text, labels)
          for text in ("no", "yes", "Yes", "", "yes ")] == [0, 1, -1, -1, -1]


@pytest.mark.parametrize("prediction, same", [
    ("Tom", 1), ("the tom", 1), ("Bob", 0), ("", -1), ("the", -1),
    ("fuzzy Tom", 1), ("Tom's", 0)])
def test_referents(prediction, same):
  example = {"targets": "Tom", "label": 1}
  assert postprocessors.same_referent(prediction, example) == same
  assert postprocessors.same_referent(prediction, example, True) == 1


def test_a_possessive_referent_needs_a_possessive():
  example = {"targets": "Bob's hat", "label": 0}
  assert postprocessors.same_referent("Bob", example) == 0
  assert postprocessors.same_referent("Bob's", example) == 1
  assert postprocessors.same_referent("Bob's", example, True) == 0


def test_numbers_and_no_numbers():
  assert postprocessors.number("2.6") == 2.6
  assert postprocessors.number("two") == -1.0
