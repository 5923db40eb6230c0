"""Ranking of candidates against t5 0.9.4's figures, and by hand."""

import math

import pytest

from prompt_tuning.metrics import rank_classification

GOLD = [0, 1, 1, 0, 1]
SCORES = [[-1.0, -2.0], [-3.0, -0.5], [-1.0, -1.5], [-2.0, -4.0],
          [-1.0, -1.0]]


def candidates(gold, width, lengths=(1, 2, 3)):
  return [((i, place), place == right, lengths[place])
          for i, right in enumerate(gold) for place in range(width)]


def test_two_classes():
  flat = sum(SCORES, [])
  targets = candidates(GOLD, 2)
  assert rank_classification.rank_classification(targets, flat, 2) == {
      "accuracy": 60.0, "f1": 50.0, "auc-roc": 100.0, "auc-pr": 100.0}
  assert rank_classification.rank_classification(
      targets, flat, 2, by_length=True, prefix="normed_") == {
          "normed_accuracy": 100.0, "normed_f1": 100.0,
          "normed_auc-roc": 100.0, "normed_auc-pr": 100.0}


def test_areas_by_hand():
  # In order of the margin: right, wrong, right, wrong.
  scores = [0.0, 4.0, 0.0, 3.0, 0.0, 2.0, 0.0, 1.0]
  found = rank_classification.rank_classification(
      candidates([1, 0, 1, 0], 2), scores, 2)
  assert found["auc-roc"] == pytest.approx(75.0)
  assert found["auc-pr"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_a_missing_class_has_no_area():
  found = rank_classification.rank_classification(
      candidates([0, 0], 2), [0.0, -1.0] * 2, 2)
  assert math.isnan(found["auc-roc"]) and math.isnan(found["auc-pr"])
  assert found["accuracy"] == 100.0


def test_more_classes():
  scores = [0.0, -1.0, -2.0, -1.0, 0.0, -2.0, -1.0, 0.0, -2.0]
  found = rank_classification.rank_classification(
      candidates([0, 1, 2], 3), scores, 3)
  assert found == {"accuracy": pytest.approx(200 / 3),
                   "mean_3class_f1": pytest.approx(100 * (1 + 2 / 3) / 3)}


def test_several_right_candidates_of_any_number_in_any_order():
  targets = [((1, 0), False, 1), ((0, 1), True, 1), ((0, 0), True, 1),
             ((1, 2), False, 1), ((1, 1), True, 1)]
  scores = [-1.0, -3.0, -2.0, -0.5, -4.0]
  assert rank_classification.rank_classification(targets, scores) == {
      "accuracy": 50.0}
