"""Writing code and predicting what it does: MBPP and CRUXEval from files.

The data are the user's downloads, named in gin (configs/tasks/mbpp.gin,
cruxeval_input.gin, cruxeval_output.gin). Splits are those of LOPA (Jain et al.
2024, arXiv 2405.15282), by the order of the file. Their metric is whether code
runs, which `prompt_tuning.execution` finds out; training reports losses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
import json
import os
import pathlib
from typing import Any

import gin

from prompt_tuning import errors
from prompt_tuning.data import files, tasks, templates

_MBPP_SOURCE = (
    "MBPP_FILE, mbpp_release_v1.jsonl with 974 rows (data/mbxp of "
    "https://github.com/amazon-science/mxeval)")
_CRUXEVAL_SOURCE = (
    "CRUXEVAL_FILE, cruxeval.jsonl with 800 rows (data of "
    "https://github.com/facebookresearch/cruxeval)")

# What ends an answer.
_END = "[/ANSWER]"

_MBPP_KEYS = ("task_id", "prompt", "canonical_solution", "entry_point", "test")
_CRUXEVAL_KEYS = ("id", "code", "input", "output")


@gin.configurable(module="code_tasks")
def mbpp(
    file: str | os.PathLike | None = None, template: str = "mbpp",
    train_rows: int = 487, stops: Sequence[str] = (),
) -> tasks.Task:
  """Python functions from a signature and a docstring (Austin et al. 2021).

  The form is MBXP's (Athiwaratkun et al. 2023). Rows 1-487 are trained on, the
  others tested: most of the data's official test split is in training here.

  Args:
    file: amazon-science/mxeval's `mbpp_release_v1.jsonl`, 974 rows.
    template: see `templates.Template`; has {prompt}.
    train_rows: the first rows of the file, which are the split "train".
    stops: see `tasks.Task`; the original has none.
  """
  return _task(
      "mbpp", file, _MBPP_SOURCE, train_rows, _MBPP_KEYS, _mbpp_example,
      templates.Template(template, ["prompt"]), stops, _mbpp_files)


@gin.configurable(module="code_tasks")
def cruxeval_input_prediction(
    file: str | os.PathLike | None = None, template: str = "cruxeval_input",
    train_rows: int = 400,
) -> tasks.Task:
  """An input for which a function gives an output (Gu et al. 2024).

  Args:
    file: CRUXEval's `cruxeval.jsonl`, 800 rows.
    template: see `templates.Template`; has {code} and {output}.
    train_rows: the first rows of the file, which are the split "train".
  """
  return _task(
      "cruxeval_input_prediction", file, _CRUXEVAL_SOURCE, train_rows,
      _CRUXEVAL_KEYS, _cruxeval_example,
      templates.Template(template, ["code", "output"], ["input"]),
      [_END], _cruxeval_files)


@gin.configurable(module="code_tasks")
def cruxeval_output_prediction(
    file: str | os.PathLike | None = None, template: str = "cruxeval_output",
    train_rows: int = 400,
) -> tasks.Task:
  """What a function gives for an input (Gu et al. 2024).

  Args:
    file: CRUXEval's `cruxeval.jsonl`, 800 rows.
    template: see `templates.Template`; has {code} and {input}.
    train_rows: the first rows of the file, which are the split "train".
  """
  return _task(
      "cruxeval_output_prediction", file, _CRUXEVAL_SOURCE, train_rows,
      _CRUXEVAL_KEYS, _cruxeval_example,
      templates.Template(template, ["code", "input"], ["output"]),
      [_END], _cruxeval_files)


def _mbpp_example(row: Mapping[str, str], prompt: str) -> dict[str, Any]:
  return {
      "inputs": prompt, "targets": row["canonical_solution"],
      # What an encoder of instances reads (LOPA).
      "encoder_text": row["prompt"],
      **{key: row[key] for key in (
          "task_id", "prompt", "entry_point", "test")}}


def _cruxeval_example(row: Mapping[str, str], prompt: str) -> dict[str, Any]:
  # The prompt ends in [ANSWER] without a line feed; the model writes it.
  return {
      "inputs": prompt,
      "targets": f"\nassert f({row['input']}) == {row['output']}\n{_END}\n",
      "encoder_text": prompt,
      **{key: row[key] for key in _CRUXEVAL_KEYS}}


def _mbpp_files(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]
) -> dict[str, str]:
  """Samples as mxeval reads them, and by problem, under the original's names.

  The first one is JSONL, whatever its name says.
  """
  samples = [
      json.dumps({"task_id": example["task_id"], "language": "python",
                  "completion": text, "data_type": "MBPP"}) + "\n"
      for example, several in zip(examples, texts, strict=True)
      for text in several]
  return {"mbxp_solutions.json": "".join(samples),
          "all_codes.json": _by_id(examples, "task_id", texts)}


def _cruxeval_files(
    examples: Sequence[tasks.Example], texts: Sequence[Sequence[str]]
) -> dict[str, str]:
  """Prompts with what was generated, and what they ask for, by problem."""
  return {
      "output_raw.json": _by_id(examples, "id", [
          [example["inputs"] + text for text in several]
          for example, several in zip(examples, texts, strict=True)]),
      "references.json": _by_id(examples, "id", [
          [example[key] for key in ("code", "input", "output")]
          for example in examples])}


def _by_id(examples, key: str, values) -> str:
  return json.dumps({
      example[key]: value
      for example, value in zip(examples, values, strict=True)}, indent=1)


def _task(
    name: str, file: str | os.PathLike | None, source: str, train_rows: int,
    keys: tuple[str, ...],
    example: Callable[[Mapping[str, str], str], dict[str, Any]],
    template: templates.Template, stops: Sequence[str],
    prediction_files: Callable[..., dict[str, str]],
) -> tasks.Task:
  """The file is asked for when its examples are: a name needs no data."""
  splits = {"train": slice(train_rows), "test": slice(train_rows, None)}

  def rows(split: str) -> list[dict[str, str]]:
    found = _read(name, file, source, keys)
    if len(found) <= train_rows:
      raise errors.UserError(
          f"{file} has {len(found)} rows, and the first {train_rows} are the "
          f"split 'train' of the task {name}: give all of {source}")
    return found[splits[split]]

  def examples(split: str) -> Iterator[dict[str, Any]]:
    for row in rows(split):
      yield example(row, template.fill(row))

  def fingerprint(split: str) -> str:
    facts = [1, name, rows(split), template.fingerprint]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

  return tasks.Task(
      name=name, examples=examples, splits=tuple(splits),
      fingerprint=fingerprint, stops=tuple(stops),
      prediction_files=prediction_files)


def _read(
    name: str, file: str | os.PathLike | None, source: str,
    keys: tuple[str, ...],
) -> list[dict[str, str]]:
  if file is None or not os.path.isfile(os.path.expanduser(file)):
    where = "is not given" if file is None else f"is not at {file}"
    raise errors.UserError(
        f"the file of the task {name} {where}: download it and give its path "
        f"as {source}")
  path = pathlib.Path(file).expanduser()
  found = []
  for number, row in files.json_rows(path):
    for key in keys:
      if not isinstance(row.get(key), str):
        raise errors.UserError(
            f"{path} line {number} has no text {key!r}: the task {name} reads "
            f"{source}")
    found.append(row)
  return found
