"""chrF: n-grams of characters."""

from collections.abc import Sequence

from prompt_tuning.metrics import references


def chrf(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    word_order: int = 0,
) -> dict[str, float]:
  """Corpus chrF (Popović 2015): F2 over n-grams of 1 to 6 characters.

  sacrebleu's: white space left out, case kept, the best reference of each
  text.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    word_order: n-grams of words that count too; 2 is chrF++.

  Returns:
    {"chrf": 0 to 100}, with a "+" in the name for each order of words.
  """
  import sacrebleu  # a third of a second, and only some tasks need it

  pairs = references.paired(targets, predictions)
  score = sacrebleu.metrics.CHRF(word_order=word_order).corpus_score(
      *references.streams(pairs)).score if pairs else 0.0
  return {f"chrf{'+' * word_order}": score}
