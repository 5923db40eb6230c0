"""Pairs of predictions and right texts, by hand."""

import pytest

from prompt_tuning.metrics import references


def test_pairs_and_streams():
  pairs = references.paired(["a", ["b", "c"]], ["x", "y"])
  assert pairs == [("x", ["a"]), ("y", ["b", "c"])]
  assert references.streams(pairs) == (
      ["x", "y"], [["a", "b"], [None, "c"]])
  assert references.streams([]) == ([], [])


def test_what_does_not_pair():
  with pytest.raises(ValueError, match="1 targets against 2"):
    references.paired(["a"], ["a", "b"])
  with pytest.raises(ValueError, match="target 2 has no text"):
    references.paired(["a", []], ["a", "b"])
