"""Tasks straight from a user's files of rows, set up in gin alone.

    from prompt_tuning.data import files

    MIXTURE_OR_TASK_NAME = @files.FileTask()
    files.FileTask.train = 'train.tsv'
    files.FileTask.validation = 'dev.tsv'
    files.FileTask.columns = ['text', 'label']
    files.FileTask.inputs = 'sentence: {text}'
    files.FileTask.targets = 'label'
    files.FileTask.labels = {0: 'negative', 1: 'positive'}

Every mistake in a file is reported with its line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import functools
import gzip
import hashlib
import json
import os
import pathlib
import string
from typing import Any
import warnings
import zlib

from prompt_tuning import errors
from prompt_tuning.data import tasks
from prompt_tuning.metrics import accuracy

# Suffixes that say how a file is written; each may be followed by `.gz`.
_FORMATS = (".tsv", ".csv", ".jsonl", ".txt")

# A row and the line it ends on.
_Rows = Iterator[tuple[int, dict[str, Any]]]


class FileTask(tasks.Task):
  """A task whose splits are files of rows with named columns."""

  def __init__(
      self,
      name: str = "file",
      train: str | os.PathLike | None = None,
      validation: str | os.PathLike | None = None,
      test: str | os.PathLike | None = None,
      inputs: str = "{text}",
      targets: str | None = "label",
      columns: Sequence[str] | None = None,
      labels: Mapping[Any, str] | None = None,
      rank_labels: bool = False,
      separator: str | None = None,
      several_references: bool = False,
      skip_incomplete: bool = False,
      metric_fns: Sequence[tasks.MetricFn] = (accuracy.accuracy,),
  ):
    """Finds the files; their rows are read when a split is asked for.

    `.tsv` is split at tabs and nothing is quoted; `.csv` is quoted as
    spreadsheets do; `.jsonl` has an object on each line; `.txt` is split at
    `separator`, and white space around fields is left out. Blank lines are
    skipped, text is UTF-8. All columns are kept in the examples.

    Args:
      name: for logs and file names.
      train: file of the split "train"; None: there is no such split.
      validation: file of the split "validation".
      test: file of the split "test".
      inputs: a column's name, or text with columns in braces,
        "question: {question} context: {context}".
      targets: the same; None: empty targets, for prediction only.
      columns: names of the columns of tables without a header; None: the
        first line names them.
      labels: a target as it is in the file -> the text to predict.
      rank_labels: the prediction is the likeliest of the texts of `labels`,
        not what the model decodes.
      separator: between the fields of `.txt` files, such as "||".
      several_references: rows of "validation" and "test" that have the same
        inputs are one example, whose targets are all right; metrics get them
        as a list.
      skip_incomplete: rows of tables with fewer columns than are named are
        left out, with one warning, instead of refused; a few of GLUE's QQP
        are.
      metric_fns: functions of target texts and predicted texts.

    Raises:
      UserError: a missing file, an unknown suffix, options that do not go
        together, or a template that cannot be read; while reading, a row that
        does not fit.
    """
    given = {"train": train, "validation": validation, "test": test}
    paths = {split: pathlib.Path(path).expanduser()
             for split, path in given.items() if path is not None}
    if not paths:
      raise errors.UserError(
          "FileTask has no files: set FileTask.train, FileTask.validation or "
          "FileTask.test")
    texts = {"inputs": _template(inputs, "inputs"),
             "targets": _template(targets, "targets")}
    verbalizers = None if labels is None else {
        str(value): str(text) for value, text in labels.items()}
    formats = [_format(path) for path in paths.values()]
    if (".txt" in formats) != bool(separator):
      raise errors.UserError(
          f"FileTask.separator is {separator!r}: .txt files need the text "
          "between their fields, such as '||', and other files none")
    if rank_labels and not verbalizers:
      raise errors.UserError(
          "FileTask.rank_labels ranks the texts of FileTask.labels, which is "
          "not set; set it, or leave rank_labels out")
    settings = [*formats, separator, inputs, targets,
                columns and list(columns), verbalizers]
    rows = functools.partial(
        _rows, columns=columns, separator=separator,
        skip_incomplete=skip_incomplete)
    if targets is None:
      verbalizers = None  # there is nothing to turn into words
    super().__init__(
        name=name,
        examples=functools.partial(
            _examples, paths, rows, texts, verbalizers, several_references),
        splits=tuple(paths),
        metric_fns=tuple(metric_fns),
        postprocess_fn=_references if several_references else None,
        fingerprint=_fingerprint(paths, [
            *settings, several_references, skip_incomplete]),
        label_texts=tuple(dict.fromkeys(
            str(text) for text in labels.values())) if rank_labels else None)


# A template is a list of (text, column after it or None).
_Template = list[tuple[str, str | None]]


def _template(text: str | None, key: str) -> _Template:
  if text is None:
    return []
  try:
    parts = list(string.Formatter().parse(text))
  except ValueError as error:
    raise errors.UserError(
        f"FileTask.{key}={text!r} cannot be read ({error}); write columns as "
        "{column} and braces of the text twice") from error
  if any(column == "" or form or conversion
         for _, column, form, conversion in parts):
    raise errors.UserError(
        f"FileTask.{key}={text!r} must have plain column names in braces, as "
        "in 'question: {question}'")
  if all(column is None for _, column, _, _ in parts):
    return [("", text)]  # a bare column name
  return [(before, column) for before, column, _, _ in parts]


def _examples(
    paths: Mapping[str, pathlib.Path],
    rows: Callable[[pathlib.Path], _Rows],
    texts: Mapping[str, _Template],
    labels: Mapping[str, str] | None,
    several_references: bool,
    split: str,
) -> Iterator[dict[str, Any]]:
  found = _single(paths[split], rows, texts, labels)
  # Training is on every row: each reference is one more example.
  return _grouped(found) if several_references and split != "train" else found


def _grouped(
    examples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """One example for all with the same inputs, in order of the first ones."""
  groups = {}
  for example in examples:
    first = groups.setdefault(
        example["inputs"], {**example, "references": []})
    first["references"].append(example["targets"])
  yield from groups.values()


def _references(text: Any, example: tasks.Example, is_target: bool) -> Any:
  """A postprocessor: the right texts of an example."""
  return example.get("references", text) if is_target else text


def _single(path, rows, texts, labels) -> Iterator[dict[str, Any]]:
  number = None
  for number, row in rows(path):
    place = f"{path} line {number}"
    inputs = _fill(texts["inputs"], row, "inputs", place)
    targets = _fill(texts["targets"], row, "targets", place)
    if labels is not None:
      targets = _verbalized(targets, labels, place)
    yield {**row, "inputs": inputs, "targets": targets}
  if number is None:
    raise errors.UserError(f"{path} has no rows; give a file with examples")


def _fill(template: _Template, row, key: str, place: str) -> str:
  text = ""
  for before, column in template:
    text += before
    if column is None:
      continue
    if column not in row:
      raise errors.UserError(
          f"{place} has no column {column!r}, which FileTask.{key} names; its "
          f"columns are {', '.join(map(repr, row))}")
    value = row[column]
    if value is None or isinstance(value, (list, dict)):
      raise errors.UserError(
          f"{place} has {json.dumps(value)[:50]} in the column {column!r}, "
          f"where FileTask.{key} needs a text or a number")
    text += str(value)
  return text


def _verbalized(value: str, labels: Mapping[str, str], place: str) -> str:
  if value not in labels:
    raise errors.UserError(
        f"{place} has the target {value!r}, which is not in FileTask.labels "
        f"({', '.join(map(repr, labels))}); add it there or correct the row")
  return labels[value]


def _rows(
    path: pathlib.Path, columns: Sequence[str] | None, separator: str | None,
    skip_incomplete: bool,
) -> _Rows:
  form = _format(path)
  if form == ".jsonl":
    return json_rows(path)
  reader = {".tsv": _tsv, ".csv": _csv}.get(
      form, functools.partial(_separated, separator=separator))
  return _table_rows(path, reader, columns, skip_incomplete)


def json_rows(path: pathlib.Path) -> _Rows:
  """The objects of a `.jsonl` file, each with its line.

  Raises:
    UserError: while reading, a line that is no JSON object.
  """
  for number, line in lines(path):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
      raise errors.UserError(
          f"{path} line {number} is not JSON ({error}); each line must be one "
          "JSON object") from error
    if not isinstance(row, dict):
      raise errors.UserError(
          f"{path} line {number} is no JSON object with named columns, as in "
          '{"text": "...", "label": "..."}')
    yield number, row


def _table_rows(
    path: pathlib.Path,
    reader: Callable[[pathlib.Path], Iterator[tuple[int, list[str]]]],
    columns: Sequence[str] | None,
    skip_incomplete: bool,
) -> _Rows:
  skipped = 0
  for number, fields in reader(path):
    if columns is None:
      columns = fields
      if len(set(columns)) < len(columns):
        raise errors.UserError(
            f"{path} line {number} names a column twice: "
            f"{', '.join(map(repr, columns))}; if it is no header, set "
            "FileTask.columns")
      continue
    if len(fields) < len(columns) and skip_incomplete:
      skipped += 1
      continue
    if len(fields) != len(columns):
      raise errors.UserError(
          f"{path} line {number} has {len(fields)} columns where "
          f"{len(columns)} are named: {', '.join(map(repr, columns))}; correct "
          "the row or FileTask.columns")
    yield number, dict(zip(columns, fields, strict=True))
  if skipped:
    warnings.warn(
        f"{path}: {skipped} rows have fewer columns than {len(columns)} and "
        "were left out", stacklevel=2)


def _tsv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  for number, line in lines(path):
    line = line.rstrip("\r\n")
    if line:
      yield number, line.split("\t")


def _separated(
    path: pathlib.Path, separator: str) -> Iterator[tuple[int, list[str]]]:
  for number, line in lines(path):
    if line.strip():
      yield number, [field.strip() for field in line.split(separator)]


def _csv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader((line for _, line in lines(path)), strict=True)
  while True:
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise errors.UserError(
          f"{path} line {reader.line_num} is not CSV ({error}); check its "
          "quotes") from error
    if fields:
      yield reader.line_num, fields


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Lines of a file, or of a `.gz`, with their numbers and their ends.

  Only a line feed ends a line.

  Raises:
    UserError: while reading, a file that cannot be read, is empty or is not
      UTF-8.
  """
  number = 0
  try:
    with _open(path) as file:
      for number, line in enumerate(file, start=1):
        # Spreadsheets put a byte order mark in front of the first line.
        yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
  except UnicodeDecodeError as error:
    raise errors.UserError(
        f"{path} line {number} is not UTF-8 ({error.reason}); convert the "
        "file to UTF-8") from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UserError(
        f"cannot read {path} after line {number}: {error}") from error
  if not number:
    raise errors.UserError(f"{path} is empty; give a file with examples")


def _open(path: pathlib.Path):
  return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _format(path: pathlib.Path) -> str:
  form = pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
  if form not in _FORMATS:
    raise errors.UserError(
        f"cannot tell how {path} is written: its name must end in "
        f"{', '.join(_FORMATS)} or one of them with .gz")
  return form


def _fingerprint(paths: Mapping[str, pathlib.Path], settings: list) -> str:
  facts = [1, settings]
  for split, path in paths.items():
    try:
      with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
      raise errors.UserError(
          f"cannot read FileTask.{split}={str(path)!r}: {error.strerror}; "
          "paths are relative to the working directory") from error
    facts.append([split, content])
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
