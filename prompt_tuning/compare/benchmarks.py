"""Scores of generated code: which problems' programs work."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from prompt_tuning.data import tasks
from prompt_tuning.execution import (
  answers,
  cage,
  completions,
  cruxeval,
  mbpp,
  scoring,
)

_MODES = {"cruxeval_input_prediction": "input",
          "cruxeval_output_prediction": "output"}

NAMES = ("mbpp", *_MODES)


def score(task: tasks.Task, split: str, folder: str) -> dict[str, Any]:
  """Runs what `scripts.generate` wrote, and goes on where it was stopped.

  Whoever calls this has been told that generated programs may be run.

  Args:
    task: one of `NAMES`.
    split: that was generated for.
    folder: with {task}-generations.jsonl; results are kept there, too.

  Returns:
    `metric`, "pass@1"; `value`, its mean in percent over samples and, for
    MBPP, over both ways to clean them up, as LOPA has it; and `values`, that of
    each problem.
  """
  examples = list(task.examples(split))
  with open(os.path.join(folder, f"{task.name}-generations.jsonl"),
            encoding="utf-8") as file:
    rows = sorted(map(json.loads, file), key=lambda row: row["index"])
  samples = [
      scoring.Sample(_name(examples[row["index"]]), number, program)
      for row in rows for number, program in enumerate(programs(
          task.name, examples[row["index"]], row["texts"]))]
  seconds = mbpp.SECONDS if task.name == "mbpp" else cruxeval.SECONDS
  results = scoring.run(
      samples, cage.Cage(
          cage.Limits(seconds=seconds), execute_generated_code=True),
      os.path.join(folder, "results.jsonl"))
  passed: dict[str, list[bool]] = {}
  for result in results:
    passed.setdefault(result["task_id"], []).append(result["passed"])
  values = [100.0 * float(np.mean(one)) for one in passed.values()]
  return {"metric": "pass@1", "value": float(np.mean(values)),
          "values": values}


def programs(
    name: str, example: Mapping[str, str], texts: Sequence[str]
) -> list[str | None]:
  """What to run of an example's texts; None for what is wrong as it stands."""
  if name == "mbpp":
    first = [completions.until_top_level(text) for text in texts]
    return [mbpp.program(example, body) for body in (
        *first, *map(completions.until_return, first))]
  mode = _MODES[name]
  found = answers.called if mode == "input" else answers.value
  return [cruxeval.program(example, found(text), mode) for text in texts]


def _name(example: Mapping[str, str]) -> str:
  return example["task_id"] if "task_id" in example else example["id"]
