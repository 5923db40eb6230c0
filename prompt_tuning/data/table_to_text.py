"""Texts from tables as Simon Fraser University's assignment has them.

Training has a line `table||text` for each text; what is decoded are lines of
tables alone, and a text for each goes into a file of lines `number||text`,
which `scripts.score_text --layout ids` judges. A decoder-only model of any
vocabulary reads

    Convert the following table into English text: {table} <bos> …

with its loss on what follows, `{text} <eos><eos>`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
import json
import os
import pathlib
from typing import Any

import gin

from prompt_tuning import errors
from prompt_tuning.data import files, tasks

INSTRUCTION = "Convert the following table into English text: "

Path = str | os.PathLike


@gin.configurable(module="table_to_text")
def pairs(
    train: Path, validation: Path | None = None,
    instruction: str = INSTRUCTION,
) -> tasks.Task:
  """Tables with texts, to train on.

  Args:
    train: a file of lines `table||text`, or a `.gz` of one.
    validation: the same; None: there is no such split.
    instruction: in front of every table.
  """
  paths = {"train": train, "validation": validation}
  return _task("table_to_text", {
      split: pathlib.Path(path).expanduser()
      for split, path in paths.items() if path is not None},
      _pairs, instruction)


@gin.configurable(module="table_to_text")
def tables(
    paths: Sequence[Path], instruction: str = INSTRUCTION) -> tasks.Mixture:
  """Tables alone, to be decoded: a task for each file, named after it.

  The texts of small.txt go into small.out. The split of all is "test".

  Args:
    paths: files with a table on each line.
    instruction: in front of every table.

  Raises:
    UserError: if there is no file, or two of one name.
  """
  named = {}
  for path in map(pathlib.Path, [paths] if isinstance(paths, str) else paths):
    name = path.name.removesuffix(".gz").removesuffix(".txt")
    if name in named:
      raise errors.UserError(
          f"TABLE_FILES has {named[name]} and {path}, whose texts would both "
          f"go into {name}.out: decode them by two commands")
    named[name] = path.expanduser()
  if not named:
    raise errors.UserError(
        "TABLE_FILES is empty: name files that have a table on each line")
  return tasks.Mixture("tables", tuple(
      (_task(name, {"test": path}, _tables, instruction), 1.0)
      for name, path in named.items()))


def _task(
    name: str, paths: Mapping[str, pathlib.Path],
    read: Callable[[pathlib.Path], Iterator[dict[str, Any]]],
    instruction: str,
) -> tasks.Task:

  def examples(split: str) -> Iterator[dict[str, Any]]:
    for row in read(paths[split]):
      prompt = instruction + row["table"]
      yield {"inputs": f"{prompt} ", "targets": f"{row['text']} ",
             "prompt": prompt, **row}

  def fingerprint(split: str) -> str:
    return hashlib.sha256(
        json.dumps([1, name, *examples(split)]).encode()).hexdigest()

  return tasks.Task(
      name=name, examples=examples, splits=tuple(paths),
      fingerprint=fingerprint, token_fn=framed,
      # `framed` has put in what ends and begins a text.
      without_eos=frozenset(["inputs", "targets"]),
      prediction_files=lambda examples, texts: {
          f"{name}.out": output(examples, texts)})


def framed(
    ids: Mapping[str, Sequence[int]], vocabularies: Mapping[str, Any],
    lengths: Mapping[str, int],
) -> Iterator[dict[str, list[int]]]:
  """A `token_fn`: what begins and ends a text, whatever tokens these are.

  A vocabulary without a beginning-of-sequence has its end in the place. The
  second end is what the assignment pads with, for it counts in the loss.
  """
  del lengths
  vocabulary = vocabularies["inputs"]
  begin, end = vocabulary.bos_id, vocabulary.eos_id
  yield {
      "inputs": [*ids["inputs"], end if begin is None else begin,
                 *vocabulary.encode(" ")],
      "targets": [*ids["targets"], end, end]}


def output(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]) -> str:
  """Lines `number||text`; of several texts of one table the first counts."""
  return "".join(
      f"{example['number']}||{cleaned(several[0], example['prompt'])}\n"
      for example, several in zip(examples, texts, strict=True))


def cleaned(text: str, prompt: str) -> str:
  """A decoded text on one line, without the prompt where it repeats that.

  The assignment leaves the two spaces that follow the prompt; no score sees
  them.
  """
  return text.replace(prompt, "").replace("\n", " ").strip()


def _pairs(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Rows of lines `table||text`; blank lines are skipped."""
  for number, line in files.lines(path):
    if not line.strip():
      continue
    table, bars, text = (part.strip() for part in line.partition("||"))
    if not (table and bars and text):
      missing = "text behind '||'" if table and bars else (
          "table in front of '||'" if bars else "'||'")
      raise errors.UserError(
          f"{path} line {number} has no {missing}: a line is `table||text`, as "
          "in `name : The Mill | food : French||The Mill serves French food.`")
    yield {"table": table, "text": text}


def _tables(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Rows of lines that are tables, numbered from 0 without the blank ones."""
  found = ((number, line.strip()) for number, line in files.lines(path)
           if line.strip())
  for count, (number, table) in enumerate(found):
    if "||" in table:
      raise errors.UserError(
          f"{path} line {number} has '||': give a file of tables alone, "
          "without texts or numbers")
    yield {"number": count, "table": table, "text": ""}
