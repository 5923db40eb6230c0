"""ROUGE-L as the COCO and E2E scorers have it."""

from collections.abc import Sequence

from prompt_tuning.metrics import penn_tokens, references

_BETA = 1.2  # how much more recall counts than precision


def rouge_l(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean F of the longest common subsequence of words (Lin 2004).

  Precision is the best that any reference gives, and so is recall, be it
  another one: these scorers' own way with several references. Words are
  those of `penn_tokens`.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.

  Returns:
    {"rouge_l": percent, 0 to 100}.
  """
  scores = [_score(penn_tokens.tokens(prediction),
                   [penn_tokens.tokens(text) for text in texts])
            for prediction, texts in references.paired(targets, predictions)]
  return {"rouge_l": 100.0 * sum(scores) / max(len(scores), 1)}


def _score(prediction: list[str], texts: Sequence[list[str]]) -> float:
  lengths = [longest_common(prediction, text) for text in texts]
  precision = max(lengths) / max(len(prediction), 1)
  recall = max(length / max(len(text), 1)
               for length, text in zip(lengths, texts))
  if not precision:
    return 0.0
  return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
  """Length of a longest sequence that both have, with gaps or without."""
  row = [0] * (len(right) + 1)  # of the prefixes of `right`
  for word in left:
    diagonal = 0
    for place, other in enumerate(right, start=1):
      above = row[place]
      row[place] = diagonal + 1 if word == other else max(
          above, row[place - 1])
      diagonal = above
  return row[-1]
