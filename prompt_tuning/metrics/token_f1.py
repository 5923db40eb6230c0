"""F1 over words, for short generated texts."""

import collections
from collections.abc import Sequence

from prompt_tuning.metrics import references


def token_f1(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean F1 between the words of targets and predictions.

  Words are split at white space and lower-cased; a word counts as often as it
  occurs in both (the overlap that SQuAD's F1 uses, Rajpurkar et al. 2016,
  without its stripping of articles and punctuation).

  Args:
    targets: the references, or lists of them, of which the nearest counts.
    predictions: one a target.

  Returns:
    {"token_f1": percent, 0 to 100}.
  """
  scores = [max(_f1(text.lower().split(), prediction.lower().split())
                for text in references.texts_of(target))
            for target, prediction in zip(targets, predictions, strict=True)]
  return {"token_f1": 100.0 * sum(scores) / max(len(scores), 1)}


def _f1(target: list[str], prediction: list[str]) -> float:
  if not target or not prediction:
    return float(target == prediction)
  common = collections.Counter(target) & collections.Counter(prediction)
  overlap = common.total()
  return 2.0 * overlap / (len(target) + len(prediction))
