"""NIST: n-grams weighed by how much they tell."""

from collections.abc import Sequence
import math

from prompt_tuning.metrics import ngrams, references

_ORDER = 5
# Two thirds of the references' length halve the score (mteval-v13a).
_BETA = -math.log(0.5) / math.log(1.5) ** 2


def nist(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus NIST-5 (Doddington 2002) of lower-cased mteval-v13a words.

  The figures of the E2E challenge's `measure_scores.py -p`. The information
  of an n-gram is log2 of how often its first n - 1 words occur in the
  references against how often it does; matches are clipped by each text's
  references; brevity is by the mean length of these. Where outputs are shorter
  than n words they have no n-grams, as in mteval-v13a itself; that program
  takes their negative number.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.

  Returns:
    {"nist": from 0 up, about 9 for good texts of E2E}.
  """
  words = _words_of()
  pairs = [(words(prediction), [words(text) for text in texts])
           for prediction, texts in references.paired(targets, predictions)]
  seen = [ngrams.Counts() for _ in range(_ORDER + 1)]  # in all references
  for n in range(1, _ORDER + 1):
    for text in (text for _, texts in pairs for text in texts):
      seen[n].update(ngrams.counts(text, n))
  seen[0][()] = seen[1].total()
  score = 0.0
  for n in range(1, _ORDER + 1):
    told, number = 0.0, 0
    for prediction, texts in pairs:
      found = ngrams.counts(prediction, n)
      number += found.total()
      told += sum(
          count * math.log2(seen[n - 1][gram[:-1]] / seen[n][gram])
          for gram, count in (found & ngrams.clipping(texts, n)).items())
    score += told / max(number, 1)
  return {"nist": score * _brevity(
      sum(len(prediction) for prediction, _ in pairs),
      sum(sum(map(len, texts)) / len(texts) for _, texts in pairs))}


def _brevity(predicted: int, expected: float) -> float:
  if predicted >= expected:
    return 1.0
  if not predicted:
    return 0.0
  return math.exp(-_BETA * math.log(predicted / expected) ** 2)


def _words_of():
  from sacrebleu.tokenizers import tokenizer_13a

  split = tokenizer_13a.Tokenizer13a()
  return lambda text: split(text).lower().split()
