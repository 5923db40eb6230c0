"""CIDEr: the references' n-grams, rare ones above all."""

from collections.abc import Mapping, Sequence
import math

from prompt_tuning.metrics import ngrams, penn_tokens, references

_ORDER = 4
_SIGMA = 6.0  # words by which lengths may differ

_Vector = Mapping[tuple[str, ...], float]


def cider(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean CIDEr of texts (Vedantam et al. 2015), as COCO and E2E score it.

  For n of 1 to 4, the cosine of counts of n-grams, each weighed by log(N / how
  many targets have it); a prediction's weights are clipped at the reference's,
  and the difference of lengths costs as a Gaussian does, in which they differ
  from the paper ("CIDEr-D", whose words are not stemmed). The mean over n and
  references, times 10. Words are those of `penn_tokens`.

  With a single target every weight is 0, and so is the score.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.

  Returns:
    {"cider": 0 to 10}.
  """
  pairs = [(penn_tokens.tokens(prediction),
            [penn_tokens.tokens(text) for text in texts])
           for prediction, texts in references.paired(targets, predictions)]
  total = 0.0
  for n in range(1, _ORDER + 1):
    spread = ngrams.Counts()  # how many targets have an n-gram
    for _, texts in pairs:
      spread.update(ngrams.clipping(texts, n).keys())
    for prediction, texts in pairs:
      guess = _weighed(prediction, n, spread, len(pairs))
      total += sum(
          _closeness(guess, _weighed(text, n, spread, len(pairs)))
          * _penalty(prediction, text) for text in texts) / len(texts)
  return {"cider": 10.0 * total / (_ORDER * max(len(pairs), 1))}


def _weighed(
    words: Sequence[str], n: int, spread: ngrams.Counts, size: int) -> _Vector:
  return {gram: count * (math.log(size) - math.log(max(spread[gram], 1)))
          for gram, count in ngrams.counts(words, n).items()}


def _closeness(guess: _Vector, goal: _Vector) -> float:
  """The cosine, with the weights of `guess` clipped in the product."""
  norms = math.hypot(*guess.values()) * math.hypot(*goal.values())
  product = sum(min(weight, goal.get(gram, 0.0)) * goal.get(gram, 0.0)
                for gram, weight in guess.items())
  return product / norms if norms else 0.0


def _penalty(prediction: Sequence[str], text: Sequence[str]) -> float:
  # Lengths are the scorers', in pairs of words, which a text without words
  # has as few of as one with one word.
  lengths = [max(len(words) - 1, 0) for words in (prediction, text)]
  return math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _SIGMA**2))
