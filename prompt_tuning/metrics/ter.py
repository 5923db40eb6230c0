"""TER: how much of a text must be edited."""

from collections.abc import Sequence

from prompt_tuning import errors
from prompt_tuning.metrics import references, webnlg_tokens

TOKENIZERS = ("none", "tercom", "webnlg")


def ter(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    tokenize: str = "none",
    case_sensitive: bool = False,
) -> dict[str, float]:
  """Corpus translation edit rate (Snover et al. 2006), lower is better.

  sacrebleu's, which has TERCOM 7.25's figures: edits, shifts of runs among
  them, against the nearest reference, over the mean length of the references.
  It is slow: a text of E2E with its seven references takes a tenth of a second.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    tokenize: "none" splits at white space; "tercom" splits punctuation off
      first, as TERCOM's -N does; "webnlg" is `webnlg_tokens`, on which papers
      on WebNLG and DART compute it.
    case_sensitive: whether case matters.

  Returns:
    {"ter": percent, from 0 up}, or {"ter_tercom"}, {"ter_webnlg"}; papers on
    WebNLG and DART give shares, 0.53.

  Raises:
    UserError: an unknown `tokenize`.
  """
  import sacrebleu  # a third of a second, and only some tasks need it

  if tokenize not in TOKENIZERS:
    raise errors.UserError(
        f"ter.tokenize is {tokenize!r}: it can be {', '.join(TOKENIZERS)}")
  pairs = references.paired(targets, predictions)
  if tokenize == "webnlg":
    pairs = [(_spaced(prediction), [_spaced(text) for text in texts])
             for prediction, texts in pairs]
  name = "ter" if tokenize == "none" else f"ter_{tokenize}"
  if not pairs:
    return {name: 0.0}
  return {name: sacrebleu.metrics.TER(
      normalized=tokenize == "tercom",
      case_sensitive=case_sensitive).corpus_score(
          *references.streams(pairs)).score}


def _spaced(text: str) -> str:
  return " ".join(webnlg_tokens.tokens(text))
