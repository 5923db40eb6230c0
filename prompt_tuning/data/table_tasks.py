"""Texts from tables and triples: E2E, WebNLG and DART, as LoRA's authors lay
them out (Hu et al. 2021, arXiv 2106.09685).

A folder has train_formatted.jsonl, dev_formatted.jsonl and
test_formatted.jsonl, whose rows have `context`, `completion` and, for WebNLG,
`cate`: whether the category occurs in training. The public files come into
that layout by `python -m prompt_tuning.scripts.format_tables`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import gin

from prompt_tuning import errors
from prompt_tuning.data import files, tasks, templates
from prompt_tuning.metrics import bleu

Row = dict[str, Any]

FILES = {"train": "train_formatted.jsonl", "validation": "dev_formatted.jsonl",
         "test": "test_formatted.jsonl"}

# How many references of a text WebNLG's measures take (their -nr).
_REFERENCES = 6

# The ten categories of WebNLG 2017's training data, and the five that only its
# test data have.
SEEN_CATEGORIES = frozenset({
    "Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food",
    "Monument", "SportsTeam", "University", "WrittenWork"})
UNSEEN_CATEGORIES = frozenset({
    "Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician"})


# ------------------------------------------------------------------ the tasks


@gin.configurable(module="table_tasks")
def nlg_e2e(
    folder: str | os.PathLike | None = None,
    template: str = "table",
    targets: str = " {completion}",
    metric_fns: Sequence[tasks.MetricFn] = (bleu.bleu,),
) -> tasks.Task:
  """E2E NLG (Novikova et al. 2017): a restaurant from its attributes.

  Args:
    folder: see the module.
    template: see `templates.Template`; has {context}.
    targets: what is to be written; has {completion}.
    metric_fns: functions of references and predicted texts.
  """
  return _task("nlg_e2e", folder, template, targets, metric_fns)


@gin.configurable(module="table_tasks")
def nlg_webnlg(
    folder: str | os.PathLike | None = None,
    template: str = "table",
    targets: str = " {completion}",
    metric_fns: Sequence[tasks.MetricFn] = (bleu.bleu,),
) -> tasks.Task:
  """WebNLG 2017 (Gardent et al. 2017): a text of up to 7 triples.

  Args:
    folder: see the module.
    template: see `templates.Template`; has {context}.
    targets: what is to be written; has {completion}.
    metric_fns: functions of references and predicted texts.
  """
  return _task("nlg_webnlg", folder, template, targets, metric_fns)


@gin.configurable(module="table_tasks")
def nlg_dart(
    folder: str | os.PathLike | None = None,
    template: str = "table",
    targets: str = " {completion}",
    metric_fns: Sequence[tasks.MetricFn] = (bleu.bleu,),
) -> tasks.Task:
  """DART (Nan et al. 2021): a text of triples from many sources.

  Args:
    folder: see the module.
    template: see `templates.Template`; has {context}.
    targets: what is to be written; has {completion}.
    metric_fns: functions of references and predicted texts.
  """
  return _task("nlg_dart", folder, template, targets, metric_fns)


def _task(
    name: str, folder, template: str, targets: str, metric_fns
) -> tasks.Task:
  template = templates.Template(template, ["context"])
  if "{completion}" not in targets:
    raise errors.UserError(
        f"TARGETS is {targets!r} and has no {{completion}}: put it where the "
        "text of a row belongs, as in ' {completion}'")

  def examples(split: str) -> Iterator[dict[str, Any]]:
    rows = [_example(row, template, targets)
            for row in _read(name, folder, split)]
    # Training is on every row: each reference is one more example.
    return iter(rows if split == "train" else grouped(rows))

  def fingerprint(split: str) -> str:
    facts = [1, name, list(_read(name, folder, split)), template.fingerprint,
             targets]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

  return tasks.Task(
      name=name, examples=examples, splits=tuple(FILES),
      metric_fns=tuple(metric_fns), postprocess_fn=_judged,
      fingerprint=fingerprint,
      prediction_files=_e2e_files if name == "nlg_e2e" else _triples_files)


def _example(
    row: Row, template: templates.Template, targets: str) -> dict[str, Any]:
  return {
      "inputs": template.fill(row),
      "targets": targets.replace("{completion}", row["completion"]),
      # What an encoder of instances reads (LOPA).
      "encoder_text": row["context"], **row}


def grouped(rows: Iterable[Row]) -> list[Row]:
  """One row for all of one context, whose completions are its references.

  Rows are in the order in which their contexts occur first.
  """
  found = {}
  for row in rows:
    first = found.setdefault(row["context"], {**row, "references": []})
    first["references"].append(row["completion"])
  return list(found.values())


def hypothesis(text: str) -> str:
  """What counts of a prediction: up to a blank line, on one line."""
  return " ".join(text.strip().split("\n\n")[0].split("\n")).strip()


def _judged(text: Any, example: tasks.Example, is_target: bool) -> Any:
  if not is_target:
    return hypothesis(text)
  return example.get("references", [example["completion"]])


def _e2e_files(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]
) -> dict[str, str]:
  """As measure_scores.py of tuetschek/e2e-metrics reads them.

  Of several texts of one context the first counts, as in all files below.
  """
  return {
      "e2e_ref.txt": "\n".join(
          _lines(example["references"]) for example in examples),
      "e2e_pred.txt": _lines(hypothesis(several[0]) for several in texts),
      "e2e_raw.txt": _lines(several[0] for several in texts),
      "e2e_context.txt": _lines(example["context"] for example in examples)}


def _triples_files(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]
) -> dict[str, str]:
  """As eval.py of WebNLG/GenerationEval reads them: 6 files of references.

  Where categories are known there are files of seen and unseen ones, too, and
  categories.txt, by which `scripts.score_text` makes both in one go.
  """
  rows = [(example, several[0]) for example, several in zip(
      examples, texts, strict=True)]
  sets = {"all": rows}
  if any("cate" in example for example in examples):
    for name, kind in (("seen", True), ("unseen", False)):
      sets[name] = [row for row in rows if row[0]["cate"] is kind]
  found = {"raw.txt": _lines(text for _, text in rows),
           "context.txt": _lines(example["context"] for example, _ in rows)}
  if len(sets) > 1:
    found["categories.txt"] = _lines(
        "seen" if example["cate"] else "unseen" for example, _ in rows)
  for name, part in sets.items():
    found[f"hypothesis_{name}"] = _lines(
        spaced(hypothesis(text)) for _, text in part)
    for number in range(_REFERENCES):
      found[f"references_{name}/reference{number}"] = _lines(
          spaced(_one_of(example["references"], number))
          for example, _ in part)
  return found


def spaced(text: str) -> str:
  """In lower case, one space around whatever is neither letter nor digit."""
  return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def _one_of(references: Sequence[str], number: int) -> str:
  """One of the references; the first again where there are fewer."""
  return references[number if number < len(references) else 0]


def _lines(texts: Iterable[str]) -> str:
  return "".join(" ".join(text.split("\n")) + "\n" for text in texts)


def _read(name: str, folder, split: str) -> Iterator[Row]:
  if folder is None or not os.path.isfile(
      os.path.expanduser(os.path.join(folder, FILES[split]))):
    where = "is not given" if folder is None else f"is not in {folder}"
    raise errors.UserError(
        f"{FILES[split]} of the task {name} {where}: make it of the public "
        "file with `python -m prompt_tuning.scripts.format_tables` and give "
        "its folder as NLG_FOLDER")
  path = pathlib.Path(folder, FILES[split]).expanduser()
  for number, row in files.json_rows(path):
    for key in ("context", "completion"):
      if not isinstance(row.get(key), str):
        raise errors.UserError(
            f"{path} line {number} has no text {key!r}: rows have a context "
            "and a completion")
    yield row


# ----------------------------------------------------------- the public files


def e2e_rows(lines: Iterable[str]) -> Iterator[Row]:
  """Rows of E2E's lines, `name : The Mill | food : French||The Mill …`.

  Raises:
    UserError: a line without `||`, or with nothing on one side of it.
  """
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    context, bars, text = (part.strip() for part in line.partition("||"))
    if not bars:
      raise errors.UserError(
          f"line {number} has no '||' between a table and its text")
    if not context or not text:
      raise errors.UserError(
          f"line {number} has no {'text behind' if context else 'table before'}"
          " its '||'")
    yield {"context": context, "completion": text}


# How WebNLG's triples are put in a row, by whose code.
WEBNLG_STYLES = ("lora", "prefix_tuning", "prefix_tuning_decoding")


def webnlg_rows(
    content: Mapping[str, Any], style: str = "lora"
) -> Iterator[Row]:
  """Rows of WebNLG's JSON.

  Args:
    content: of the file.
    style: "lora": ` | ` between triples, texts that WebNLG's makers call good.
      "prefix_tuning", as the code of Li & Liang 2021 (arXiv 2101.00190) reads
      training data: ` | ` also in front of the first triple.
      "prefix_tuning_decoding", as it reads what it decodes: the same, but for
      the file's first entry, which has no separators at all; and every text is
      a reference, whatever it is called.

  Raises:
    UserError: an entry without texts.
  """
  for number, entry in enumerate(content["entries"]):
    for name, item in entry.items():
      before, between = ("", " | ") if style == "lora" else (" | ", " | ")
      if style == "prefix_tuning_decoding" and number == 0:
        before, between = "", ""
      context = before + _joined(
          ((one["subject"], one["property"], one["object"])
           for one in item["modifiedtripleset"]), between)
      _check_references(f"entry {name}", item["lexicalisations"])
      for text in item["lexicalisations"]:
        if text["comment"] == "good" or style == "prefix_tuning_decoding":
          yield {"context": context, "completion": text["lex"],
                 "cate": item["category"] in SEEN_CATEGORIES}


def dart_rows(content: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
  """Rows of DART's JSON; relations are in lower case.

  Raises:
    UserError: an entry without texts.
  """
  for number, item in enumerate(content, start=1):
    context = _joined((subject, relation.lower(), object_)
                      for subject, relation, object_ in item["tripleset"])
    _check_references(f"entry {number}", item["annotations"])
    for text in item["annotations"]:
      yield {"context": context, "completion": text["text"]}


def _check_references(place: str, texts: Sequence[Any]) -> None:
  if not texts:
    raise errors.UserError(
        f"{place} has no reference: take it out, or write the text of its "
        "triples")


def _joined(
    triples: Iterable[tuple[str, str, str]], between: str = " | ") -> str:
  return between.join(" : ".join(triple) for triple in triples)
