"""Counts of n-grams, by hand."""

from prompt_tuning.metrics import ngrams


def test_counts_and_what_may_count():
  assert ngrams.counts("a b a b".split(), 2) == {("a", "b"): 2, ("b", "a"): 1}
  assert ngrams.counts(["a"], 2) == {}
  assert ngrams.clipping([["a", "a"], ["a", "b"]], 1) == {
      ("a",): 2, ("b",): 1}
