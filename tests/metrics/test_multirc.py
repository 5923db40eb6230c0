"""MultiRC by hand."""

import pytest

from prompt_tuning.metrics import multirc


def test_answers_and_questions():
  targets = [{"value": v, "group": g} for v, g in (
      (1, 0), (0, 0), (1, 1), (0, 1), (0, 2))]
  predictions = [{"value": v} for v in (1, 0, 1, 1, -1)]
  # Class 1: two right; two wrong, one of them invalid.
  assert multirc.multirc(targets, predictions) == {
      "f1": pytest.approx(100 * 4 / 6),
      "exact_match": pytest.approx(100 / 3)}


def test_a_question_may_be_scattered():
  targets = [{"value": 1, "group": g} for g in (0, 1, 0)]
  predictions = [{"value": v} for v in (0, 1, 1)]
  assert multirc.multirc(targets, predictions)["exact_match"] == 50.0


def test_nothing():
  assert multirc.multirc([], []) == {"f1": 0.0, "exact_match": 0.0}
