"""TER: how much of a text must be edited."""

from collections.abc import Sequence

from prompt_tuning.metrics import references


def ter(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    normalized: bool = False,
    case_sensitive: bool = False,
) -> dict[str, float]:
  """Corpus translation edit rate (Snover et al. 2006), lower is better.

  sacrebleu's, which follows TERCOM 0.7.25: edits, shifts of runs among them,
  against the nearest reference, over the mean length of the references. Words
  are split at white space.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    normalized: splits punctuation off first, as TERCOM's -N does.
    case_sensitive: whether case matters.

  Returns:
    {"ter": percent, from 0 up}; papers on WebNLG and DART give shares, 0.53.
  """
  import sacrebleu  # a third of a second, and only some tasks need it

  pairs = references.paired(targets, predictions)
  if not pairs:
    return {"ter": 0.0}
  return {"ter": sacrebleu.metrics.TER(
      normalized=normalized, case_sensitive=case_sensitive).corpus_score(
          *references.streams(pairs)).score}
