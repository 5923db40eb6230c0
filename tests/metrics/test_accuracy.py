"""Exact match, by hand."""

import pytest

from prompt_tuning.metrics import accuracy


def test_accuracy_is_a_percentage_of_stripped_matches():
  targets = ["positive", "negative", "a b", ""]
  predictions = [" positive\n", "positive", "a  b", ""]
  assert accuracy.accuracy(targets, predictions) == {"accuracy": 50.0}


def test_labels_need_not_be_texts():
  assert accuracy.accuracy([0, 1, -1], [0, 1, 1])["accuracy"] == (
      pytest.approx(200 / 3))


def test_different_lengths_are_refused():
  with pytest.raises(ValueError, match="1 targets against 2"):
    accuracy.accuracy(["a"], ["a", "b"])


def test_any_of_several_right_texts():
  targets = [["yes", "yeah"], ["no"], "maybe"]
  assert accuracy.accuracy(targets, ["yeah ", "yes", "maybe"]) == {
      "accuracy": pytest.approx(200 / 3)}
