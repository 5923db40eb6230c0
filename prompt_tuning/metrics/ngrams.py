"""Counts of n-grams."""

import collections
from collections.abc import Iterable, Sequence

Counts = collections.Counter[tuple[str, ...]]


def counts(words: Sequence[str], n: int) -> Counts:
  """How often each run of n words occurs."""
  return collections.Counter(zip(*(words[i:] for i in range(n))))


def clipping(texts: Iterable[Sequence[str]], n: int) -> Counts:
  """How often each n-gram may count: the most that a single text has it."""
  most = collections.Counter()
  for words in texts:
    most |= counts(words, n)
  return most
