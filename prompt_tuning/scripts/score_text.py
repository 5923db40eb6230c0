"""Scores generated texts against references, from files.

    python -m prompt_tuning.scripts.score_text --outputs e2e_pred.txt \\
        --references e2e_ref.txt \\
        --metrics=bleu_mteval13a,nist,meteor,rouge_l,cider
    python -m prompt_tuning.scripts.score_text --outputs hypothesis_all \\
        --references reference0 reference1 reference2 \\
        --metrics=multi_bleu,meteor,ter_webnlg --categories categories.txt
    python -m prompt_tuning.scripts.score_text --outputs dev.out \\
        --references reference/dev.out --layout ids --metrics=sentence_bleu
    python -m prompt_tuning.scripts.score_text --outputs test.hypo \\
        --references test.target --metrics=rouge_stemmed

Prints a table and writes the scores, with how each was computed, as JSON. With
--categories, a line for each output that says of what WebNLG category it is,
or "seen" or "unseen", there are scores of these splits, too.
"""

import argparse
from collections.abc import Mapping, Sequence
import difflib
import functools
import json
import sys
from typing import Any

from prompt_tuning import errors, formats, versions
from prompt_tuning.data import scored_texts, tasks
from prompt_tuning.metrics import (
    bleu,
    bleu_mteval13a,
    chrf,
    cider,
    meteor,
    meteor_jar,
    multi_bleu,
    nist,
    rouge_l,
    rouge_stemmed,
    sentence_bleu,
    splits,
    ter,
)

# Name: (function, how it scores).
METRICS = {
    "bleu": (
        bleu.bleu, "sacrebleu's corpus BLEU of 13a words, case kept, "
        "exponential smoothing; 0 to 100"),
    "bleu_mteval13a": (
        bleu_mteval13a.bleu_mteval13a, "corpus BLEU of lower-cased mteval-v13a "
        "words, as the E2E scorer's; 0 to 100"),
    "nist": (
        nist.nist, "corpus NIST-5 of lower-cased mteval-v13a words, as the E2E "
        "scorer's"),
    "multi_bleu": (
        multi_bleu.multi_bleu, "multi-bleu.perl -lc of WebNLG's words, the "
        "first 3 references unless --first_references says otherwise; 0 to "
        "100"),
    "sentence_bleu": (
        sentence_bleu.sentence_bleu, "mean of sacrebleu's sentence BLEU of 13a "
        "words, effective order; 0 to 100"),
    "ter": (
        ter.ter, "sacrebleu's corpus TER of lower-cased words at white space; "
        "percent, lower is better"),
    "ter_webnlg": (
        functools.partial(ter.ter, tokenize="webnlg"), "sacrebleu's corpus TER "
        "of WebNLG's words; percent, lower is better"),
    "chrf": (
        chrf.chrf, "sacrebleu's corpus chrF2, 6 characters; 0 to 100"),
    "rouge_l": (
        rouge_l.rouge_l, "mean ROUGE-L of Penn Treebank words, beta 1.2, as "
        "the E2E scorer's; percent"),
    "rouge_stemmed": (
        rouge_stemmed.rouge_stemmed, "mean F1 of rouge-score with Porter's "
        "stems; percent"),
    "cider": (
        cider.cider, "mean CIDEr of Penn Treebank words, as the E2E scorer's; "
        "0 to 10"),
    "meteor": (
        meteor.meteor, "mean of nltk's METEOR of Penn Treebank words, by "
        "words, stems and, if the name says WordNet, synonyms; not METEOR 1.5; "
        "percent"),
    "meteor_jar": (
        meteor_jar.meteor_jar, "corpus METEOR 1.5 by --meteor_jar, -norm, of "
        "Penn Treebank words, as the E2E scorer's; percent"),
}


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.score_text", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--outputs", required=True, metavar="FILE", help="the generated texts")
  parser.add_argument(
      "--references", nargs="+", default=[], metavar="FILE",
      help="what they should be")
  parser.add_argument(
      "--layout", choices=scored_texts.LAYOUTS,
      help="of the files: E2E's groups of references with blank lines between, "
      "a reference a line, or lines with ids and || (default: lines if there "
      "are several files of references, groups if there is one)")
  parser.add_argument(
      "--tables", metavar="FILE",
      help="for the layout ids: the tables, a line each, that the outputs are "
      "of; references are then found by the table and not by the id")
  parser.add_argument(
      "--metrics", default="bleu", metavar="NAME,NAME",
      help=f"of {', '.join(METRICS)} (default: bleu)")
  parser.add_argument(
      "--categories", metavar="FILE",
      help="a line for each output: WebNLG's category, or seen or unseen")
  parser.add_argument(
      "--first_references", type=int, metavar="N",
      help="the references of each output that count (default: all)")
  parser.add_argument(
      "--wordnet", metavar="FOLDER",
      help="synonyms of meteor: a folder with index.noun, data.noun, …")
  parser.add_argument(
      "--meteor_jar", metavar="FILE", help="meteor-1.5.jar, for meteor_jar")
  parser.add_argument(
      "--json", metavar="FILE",
      help="where the scores go (default: the outputs' name and .scores.json)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    report = score(
        flags.outputs, flags.references,
        metric_fns(flags.metrics.split(","), {
            "meteor": ("wordnet_folder", "--wordnet", flags.wordnet),
            "meteor_jar": ("jar", "--meteor_jar", flags.meteor_jar),
            "multi_bleu": ("most_references", None, flags.first_references)}),
        flags.layout, flags.categories, flags.first_references, flags.tables)
    print(table(report["splits"]))
    empty = report["splits"]["all"]["empty_outputs"]
    if empty:
      print(f"{empty:,} of the outputs are empty; they are scored as such")
    path = flags.json or f"{flags.outputs}.scores.json"
    formats.write_whole(path, (json.dumps(
        report, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"scores: {path}")


def metric_fns(
    names: Sequence[str],
    settings: Mapping[str, tuple[str, str | None, Any]],
) -> dict[str, tasks.MetricFn]:
  """The functions of metrics by name.

  Args:
    names: of `METRICS`.
    settings: by name of a metric, one argument of its function, the flag that
      is for this metric alone, and the value, None if it is not given.

  Raises:
    UserError: an unknown name, or a flag of a metric that is not asked for.
  """
  found = {}
  for name in (name.strip() for name in names):
    if name not in METRICS:
      near = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.4)
      raise errors.UserError(
          f"there is no metric {name!r}: "
          + (f"did you mean {' or '.join(near)}?" if near else
             f"known are {', '.join(METRICS)}"))
    found[name] = METRICS[name][0]
  for name, (argument, flag, value) in settings.items():
    if value is not None and name in found:
      found[name] = functools.partial(found[name], **{argument: value})
    elif value is not None and flag:
      raise errors.UserError(
          f"{flag} is for the metric {name}, which --metrics does not name")
  return found


def score(
    outputs: str,
    references: Sequence[str],
    metrics: Mapping[str, tasks.MetricFn],
    layout: str | None = None,
    categories: str | None = None,
    first_references: int | None = None,
    tables: str | None = None,
) -> dict[str, Any]:
  """The scores of files, and what they were made of.

  Args:
    outputs: a file, see `scored_texts`.
    references: files.
    metrics: functions of targets and predictions by name.
    layout: of `scored_texts.LAYOUTS`; None: "lines" if there are several files
      of references, else "groups".
    categories: a file; None: there are no splits.
    first_references: how many of an output count; None: all.
    tables: a file, see `scored_texts.read`.

  Returns:
    What the JSON file has.

  Raises:
    UserError: files that cannot be read or do not go together.
  """
  if not references:
    raise errors.UserError(
        f"{', '.join(metrics)} compare outputs with references: name their "
        "files by --references")
  if first_references is not None and first_references < 1:
    raise errors.UserError(
        f"--first_references {first_references} leaves none: give 1 or more")
  layout = layout or ("lines" if len(references) > 1 else "groups")
  read = scored_texts.read(layout, outputs, references, tables)
  targets = [texts[:first_references] for texts in read.references]
  parts = ["all"] * len(targets) if categories is None else (
      scored_texts.splits(categories, len(targets)))
  found = splits.by_split(_sizes, targets, read.outputs, parts)
  for part in found.values():
    part["scores"] = {}
  for metric in metrics.values():
    for name, scores in splits.by_split(
        metric, targets, read.outputs, parts).items():
      found[name]["scores"] |= scores
  return {
      "outputs": str(outputs), "references": list(map(str, references)),
      "layout": layout, "first_references": first_references,
      "categories": categories and str(categories),
      "tables": tables and str(tables),
      "metrics": {name: METRICS[name][1] for name in metrics},
      "splits": found, "versions": versions.installed()}


def _sizes(targets, predictions):
  return {"outputs": len(predictions),
          "empty_outputs": sum(not text for text in predictions),
          "references": sum(map(len, targets))}


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
  """The scores of splits, a column each.

  Args:
    parts: by split, its sizes and its "scores".
  """
  rows = [("", list(parts))]
  first = next(iter(parts.values()))
  for name in first:
    if name != "scores":
      rows.append((name.replace("_", " "), [
          f"{part[name]:,}" for part in parts.values()]))
  for name in first["scores"]:
    rows.append((name, [
        f"{part['scores'][name]:.4f}" for part in parts.values()]))
  width = max(len(name) for name, _ in rows)
  return "\n".join(
      name.ljust(width) + "".join(f"{value:>12}" for value in values)
      for name, values in rows)


if __name__ == "__main__":
  sys.exit(main())
