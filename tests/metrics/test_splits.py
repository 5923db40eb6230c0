"""Splits of a test set, by hand."""

import pytest

from prompt_tuning.metrics import accuracy, bleu, splits


def test_each_split_by_itself():
  found = splits.by_split(
      accuracy.accuracy, ["a", "b", "c", "d"], ["a", "x", "c", "x"],
      ["seen", "unseen", "seen", "seen"])
  assert found == {
      "all": {"accuracy": 50.0},
      "seen": {"accuracy": pytest.approx(200 / 3)},
      "unseen": {"accuracy": 0.0}}
  assert list(found) == ["all", "seen", "unseen"]


def test_a_corpus_is_no_mean():
  targets, outputs = ["a b c d", "a b c d e f"], ["a b c d", "a b c x y z"]
  found = splits.by_split(bleu.bleu, targets, outputs, ["x", "y"])
  assert found["all"] == bleu.bleu(targets, outputs)
  assert found["y"] == bleu.bleu(targets[1:], outputs[1:])
  with pytest.raises(ValueError):
    splits.by_split(bleu.bleu, targets, outputs, ["x"])
