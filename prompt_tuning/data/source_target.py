"""Tasks from two files a split, a text and what is to be written of it a line:
XSum and CNN/DailyMail as Li & Liang 2021 (arXiv 2101.00190) lay them out.

A folder has train.source, train.target, val.source, val.target, test.source
and test.target; line 7 of the one is for line 7 of the other.
"""

from collections.abc import Iterator, Sequence
import functools
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

import gin

from prompt_tuning import errors
from prompt_tuning.data import files, tasks
from prompt_tuning.metrics import rouge_stemmed

# Names of files by split.
STEMS = {"train": "train", "validation": "val", "test": "test"}


@gin.configurable(module="source_target")
def source_target(
    name: str = "source_target",
    folder: str | os.PathLike | None = None,
    separator: str | None = None,
    metric_fns: Sequence[tasks.MetricFn] = (rouge_stemmed.rouge_stemmed,),
) -> tasks.Task:
  """A task whose inputs are sources and whose targets are targets, as they are.

  Args:
    name: for logs and file names.
    folder: see the module.
    separator: what a decoder-only model reads between source and target, such
      as "<|endoftext|>". A source that is too long loses its end, never the
      separator. None: there is none, as encoder-decoders have it.
    metric_fns: functions of target texts and predicted texts.

  Raises:
    UserError: while reading, files that are missing or do not line up, or an
      empty line.
  """
  return tasks.Task(
      name=name, examples=functools.partial(_examples, name, folder),
      splits=tuple(STEMS), metric_fns=tuple(metric_fns),
      fingerprint=functools.partial(_fingerprint, name, folder),
      input_end=separator, prediction_files=_prediction_files)


def _examples(name: str, folder, split: str) -> Iterator[dict[str, Any]]:
  paths = _paths(name, folder, split)
  counts, absent = [0, 0], object()
  for number, pair in enumerate(itertools.zip_longest(
      *map(_texts, paths), fillvalue=absent), start=1):
    for place, text in enumerate(pair):
      counts[place] += text is not absent
    if absent in pair:
      continue  # counts what is left, for the sentence
    for path, text in zip(paths, pair):
      if not text.strip():
        raise errors.UserError(
            f"{path} line {number} is empty: each line is a text; take the "
            "line out of both files, or write its text")
    yield dict(zip(("inputs", "targets"), pair))
  if counts[0] != counts[1]:
    raise errors.UserError(
        f"{paths[0]} has {counts[0]:,} lines and {paths[1]} {counts[1]:,}: "
        "line by line they must belong together")


def _texts(path: pathlib.Path) -> Iterator[str]:
  return (line.rstrip("\r\n") for _, line in files.lines(path))


def _paths(name: str, folder, split: str) -> list[pathlib.Path]:
  paths = [pathlib.Path(folder or "", f"{STEMS[split]}.{side}").expanduser()
           for side in ("source", "target")]
  for path in paths:
    if folder is None or not path.is_file():
      where = "is not given" if folder is None else f"is not in {folder}"
      raise errors.UserError(
          f"{path.name} of the task {name} {where}: give a folder with "
          f"{' and '.join(one.name for one in paths)}, a text on each line, as "
          "SOURCE_TARGET_FOLDER")
  return paths


def _fingerprint(name: str, folder, split: str) -> str:
  facts = [1, name]
  for path in _paths(name, folder, split):
    with open(path, "rb") as file:
      facts.append(hashlib.file_digest(file, "sha256").hexdigest())
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _prediction_files(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]
) -> dict[str, str]:
  """As `scripts.score_text` reads them: a text a line; of several the first."""
  return {
      "predictions.txt": _lines(several[0] for several in texts),
      "targets.txt": _lines(example["targets"] for example in examples)}


def _lines(texts) -> str:
  return "".join(" ".join(text.split()) + "\n" for text in texts)
