"""ROUGE of stemmed words, as papers on XSum and CNN/DailyMail give it."""

from collections.abc import Sequence

from prompt_tuning.metrics import references

_NAMES = ("rouge1", "rouge2", "rougeL")


def rouge_stemmed(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean F1 of ROUGE-1, -2 and -L (Lin 2004) by the package rouge-score.

  Words are runs of ASCII letters and digits in lower case, Porter's stems of
  those over three letters; -L takes a text as one sentence. The plain mean
  over texts: the middle of bootstrapped means, which `rouge_score` users often
  report, is this up to how it is drawn. `rouge.rouge` does not stem.

  Args:
    targets: N texts, or lists of texts, of which the best counts for each.
    predictions: N texts.

  Returns:
    {"rouge1_stemmed", "rouge2_stemmed", "rougeL_stemmed": percent}.
  """
  from rouge_score import rouge_scorer  # imports nltk, half a second

  scorer = rouge_scorer.RougeScorer(list(_NAMES), use_stemmer=True)
  scores = [scorer.score_multi(texts, prediction)
            for prediction, texts in references.paired(targets, predictions)]
  return {f"{name}_stemmed": 100.0 * sum(
      one[name].fmeasure for one in scores) / max(len(scores), 1)
          for name in _NAMES}
