"""Problems and predictions from files, and what is said of a bad one."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib

from prompt_tuning import errors, formats


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One sample for one problem.

  Attributes:
    task_id: the problem's.
    sample: which of its samples, from 0.
    text: what was predicted.
  """

  task_id: str
  sample: int
  text: str


def problems(
    path: str | os.PathLike, key: str, others: Sequence[str],
) -> dict[str, dict[str, str]]:
  """The problems of a benchmark, a JSON object a line, by their names.

  Args:
    path: the benchmark's file.
    key: the name's key.
    others: further keys that each problem must have, with texts.

  Raises:
    UserError: if it is something else, or names a problem twice.
  """
  found = {}
  twice = []
  for number, row in rows(path):
    lacking = [
        name for name in (key, *others) if not isinstance(row.get(name), str)]
    if lacking:
      raise errors.UserError(
          f"{path} line {number} has no text under {_named(lacking)}: give the "
          "benchmark's own file of problems.")
    if row[key] in found:
      twice.append(row[key])
    found[row[key]] = row
  if twice:
    raise errors.UserError(
        f"{path} has {_counted(twice)} more than once: leave one of each.")
  return found


def samples_by_line(
    path: str | os.PathLike, known: Mapping[str, dict],
) -> list[Prediction]:
  """MBPP's predictions as mxeval reads them, a JSON object a line.

  Each has `task_id` and `completion`; lines of one problem are its samples.

  Args:
    path: the file; `mbxp_solutions.json` is one, for all its name.
    known: the problems.

  Raises:
    UserError: if it is something else, or has predictions of other problems.
  """
  counts, found = collections.Counter(), []
  for number, row in rows(path):
    for key in ("task_id", "completion"):
      if not isinstance(row.get(key), str):
        raise errors.UserError(
            f"{path} line {number} has no text under '{key}': give lines of "
            '{"task_id": …, "completion": …}.')
    if row.get("language", "python") != "python":
      raise errors.UserError(
          f"{path} line {number} is in {row['language']!r}: only Python is "
          "run here.")
    found.append(Prediction(
        row["task_id"], counts[row["task_id"]], row["completion"]))
    counts[row["task_id"]] += 1
  _all_known(path, counts, known)
  return found


def samples_by_problem(
    path: str | os.PathLike, known: Mapping[str, dict],
) -> list[Prediction]:
  """CRUXEval's predictions, a JSON object of {name: [text, …]}.

  Args:
    path: the file.
    known: the problems.

  Raises:
    UserError: if it is something else, names a problem twice, has one without
      samples or one that is not known.
  """
  try:
    pairs = json.loads(_text(path), object_pairs_hook=_Pairs)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
        f"{path} is not JSON ({_short(error)}): give a JSON object of "
        "{name: [text, …]}.") from error
  if not isinstance(pairs, _Pairs):
    raise errors.UserError(
        f"{path} is not a JSON object: give one of {{name: [text, …]}}.")
  for name, texts in pairs:
    if isinstance(texts, _Pairs) or not isinstance(texts, list) or not all(
        isinstance(text, str) for text in texts):
      raise errors.UserError(
          f"{path} has no list of texts under {name!r}: give a JSON object of "
          "{name: [text, …]}.")
  counts = collections.Counter(name for name, _ in pairs)
  for what, names in (
      ("more than once", [name for name in counts if counts[name] > 1]),
      ("without a sample", [name for name, texts in pairs if not texts])):
    if names:
      raise errors.UserError(
          f"{path} has {_counted(names)} {what}: give each problem once, with "
          "its samples.")
  if not pairs:
    raise errors.UserError(f"{path} has no predictions: generate them first.")
  _all_known(path, counts, known)
  return [Prediction(name, number, text)
          for name, texts in pairs for number, text in enumerate(texts)]


def without_prediction(
    known: Mapping[str, dict], predictions: Sequence[Prediction],
) -> list[str]:
  """The problems that have none."""
  predicted = {prediction.task_id for prediction in predictions}
  return [name for name in known if name not in predicted]


def complain_of_missing(path: str | os.PathLike, names: Sequence[str]) -> None:
  """Raises a UserError that counts and names problems without predictions."""
  raise errors.UserError(
      f"{path} has no prediction for {_counted(names)}: generate them, or say "
      "--missing wrong (they count as failed) or --missing leave_out (they do "
      "not count).")


def rows(path: str | os.PathLike) -> list[tuple[int, dict]]:
  """The objects of a JSONL file, each with its line's number.

  Raises:
    UserError: if it cannot be read, has a line that is something else, or has
      none.
  """
  found = []
  for number, line in enumerate(_text(path).split("\n"), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise errors.UserError(
          f"{path} line {number} is not JSON ({_short(error)}): give a JSON "
          "object a line.") from error
    if not isinstance(row, dict):
      raise errors.UserError(
          f"{path} line {number} is not a JSON object: give one a line.")
    found.append((number, row))
  if not found:
    raise errors.UserError(f"{path} is empty: give a JSON object a line.")
  return found


def write_rows(path: str | os.PathLike, content: Sequence[dict]) -> None:
  """A JSONL file, all or nothing."""
  formats.write_whole(
      path, "".join(json.dumps(row) + "\n" for row in content).encode())


class _Pairs(list):
  """A JSON object with the names that it has more than once."""


def _text(path: str | os.PathLike) -> str:
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
        f"cannot read {path} ({getattr(error, 'strerror', None) or error}): "
        "check the path; the file must be text in UTF-8.") from error


def _all_known(path, counts, known) -> None:
  unknown = [name for name in counts if name not in known]
  if unknown:
    raise errors.UserError(
        f"{path} has predictions for {_counted(unknown)} that the problems "
        "lack: give the problems that were predicted by --problem_file.")


def _counted(names: Sequence[str]) -> str:
  kind = "problem" if len(names) == 1 else "problems"
  return f"{len(names)} {kind} ({_named(names)})"


def _named(names: Sequence[str]) -> str:
  shown = ", ".join(repr(name) for name in names[:5])
  return shown + (", …" if len(names) > 5 else "")


def _short(error: Exception) -> str:
  return " ".join(str(error).split())[:100]
