"""ROUGE, for summaries."""

import collections
from collections.abc import Sequence
import re

_WORD = re.compile(r"[a-z0-9]+")


def rouge(
    targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Mean ROUGE-1, -2 and -Lsum (Lin 2004), as F1 over words.

  Words are runs of ASCII letters and digits in lower case, not stemmed. For
  Lsum, sentences are lines, and " . " ends one too, as T5 has it. The mean is
  exact, where rouge_score's is drawn by bootstrap.

  Args:
    targets: N summaries.
    predictions: N summaries.

  Returns:
    {"rouge1": …, "rouge2": …, "rougeLsum": …}, percent.
  """
  totals = dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), 0.0)
  for pair in zip(targets, predictions, strict=True):
    target, prediction = (
        [_words(line) for line in text.replace(" . ", " .\n").split("\n")]
        for text in pair)
    words = [sum(lines, []) for lines in (target, prediction)]
    totals["rouge1"] += _grams(*words, 1)
    totals["rouge2"] += _grams(*words, 2)
    totals["rougeLsum"] += _longest(target, prediction)
  return {name: 100.0 * total / max(len(targets), 1)
          for name, total in totals.items()}


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def _f1(hits: int, target: int, prediction: int) -> float:
  return 2.0 * hits / (target + prediction) if hits else 0.0


def _grams(target: list[str], prediction: list[str], n: int) -> float:
  counts = [collections.Counter(zip(*(words[i:] for i in range(n))))
            for words in (target, prediction)]
  hits = (counts[0] & counts[1]).total()
  return _f1(hits, counts[0].total(), counts[1].total())


def _longest(target: list[list[str]], prediction: list[list[str]]) -> float:
  """F1 of the words that each line of the target has, in order, in any line.

  A word counts no more often than it occurs in each of the two.
  """
  left = [collections.Counter(sum(lines, []))
          for lines in (target, prediction)]
  sizes = [count.total() for count in left]
  hits = 0
  for line in target:
    found = {i for other in prediction for i in _subsequence(line, other)}
    for word in (line[i] for i in sorted(found)):
      if left[0][word] > 0 and left[1][word] > 0:
        hits += 1
        left[0][word] -= 1
        left[1][word] -= 1
  return _f1(hits, *sizes)


def _subsequence(line: list[str], other: list[str]) -> list[int]:
  """Places in a line of a longest sequence of words that both have."""
  table = [[0] * (len(other) + 1) for _ in range(len(line) + 1)]
  for i, word in enumerate(line, start=1):
    for j, one in enumerate(other, start=1):
      table[i][j] = table[i - 1][j - 1] + 1 if word == one else max(
          table[i - 1][j], table[i][j - 1])
  places, i, j = [], len(line), len(other)
  while i and j:
    if line[i - 1] == other[j - 1]:
      i, j = i - 1, j - 1
      places.append(i)
    elif table[i][j - 1] > table[i - 1][j]:
      j -= 1
    else:
      i -= 1
  return places
