"""Answers to questions, as SQuAD's own script judges them."""

import collections
from collections.abc import Sequence
import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Exact match and F1 over words, with the answer that fits best.

  Case, punctuation and articles do not count (Rajpurkar et al. 2016).

  Args:
    targets: all right answers to each of N questions.
    predictions: N answers.

  Returns:
    {"em": percent, "f1": percent}.
  """
  exact = overlap = 0.0
  for answers, prediction in zip(targets, predictions, strict=True):
    guess = normalized(prediction)
    right = [normalized(answer) for answer in answers]
    exact += guess in right
    overlap += max((_f1(answer.split(), guess.split()) for answer in right),
                   default=0.0)
  count = max(len(targets), 1)
  return {"em": 100.0 * exact / count, "f1": 100.0 * overlap / count}


def normalized(text: str) -> str:
  """Lower case, without punctuation, articles and needless white space."""
  text = text.lower().translate(_NO_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def _f1(target: list[str], prediction: list[str]) -> float:
  common = collections.Counter(target) & collections.Counter(prediction)
  same = common.total()
  return 2.0 * same / (len(target) + len(prediction)) if same else 0.0
