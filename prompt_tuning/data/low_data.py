"""Few examples of a task, the same ones for every method and on every machine.

Li & Liang 2021 (arXiv 2101.00190), 6.3: 50, 100, 200 and 500 examples, five
draws of each, with 30 % as many to choose by.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import heapq
import json
from typing import Any

import gin

from prompt_tuning import errors
from prompt_tuning.data import tasks

_DRAWN = ("train", "validation")


@gin.configurable(module="low_data")
def low_data(
    task: str | tasks.Task,
    examples: int,
    seed: int = 0,
    validation_share: float = 0.3,
) -> tasks.Task:
  """A task that has a random part of another's training and validation data.

  Of one seed a smaller draw is part of a larger one. Examples stay in their
  order, and other splits are whole.

  Args:
    task: the other one, or its name.
    examples: how many of the training split.
    seed: of the draw. It is not the run's, which is for what is random in
      training.
    validation_share: as many of the validation split, to each of `examples`;
      rounded, at least one.

  Returns:
    The task; its name ends in `examples` and `seed`.

  Raises:
    UserError: a number or share that makes no data, or a mixture; while
      reading, more examples than there are.
  """
  whole = tasks.get_task(task)
  if isinstance(whole, tasks.Mixture):
    raise errors.UserError(
        f"low_data.task is the mixture {whole.name}: give one of its tasks")
  if type(examples) is not int or examples < 1:
    raise errors.UserError(
        f"LOW_DATA_EXAMPLES (low_data.examples) is {examples!r}: it must be a "
        "whole number from 1 up")
  if validation_share <= 0:
    raise errors.UserError(
        f"low_data.validation_share is {validation_share}: it must be above 0")
  counts = dict(zip(_DRAWN, (
      examples, max(round(validation_share * examples), 1))))
  fields = {field.name: getattr(whole, field.name)
            for field in dataclasses.fields(tasks.Task)}
  return tasks.Task(**fields | {
      "name": f"{whole.name}_{examples}_{seed}",
      "examples": functools.partial(_examples, whole, counts, seed),
      "fingerprint": functools.partial(_fingerprint, whole, counts, seed)})


@gin.configurable(module="low_data")
def draws(
    task: str | tasks.Task,
    sizes: Sequence[int] = (50, 100, 200, 500),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> list[tasks.Task]:
  """`low_data` of every size and seed, for TASKS of runs/prompt_sweep.gin."""
  return [low_data(task, size, seed) for size in sizes for seed in seeds]


def _examples(
    task: tasks.Task, counts: dict[str, int], seed: int, split: str
) -> Iterator[dict[str, Any]]:
  if split not in counts:
    yield from task.examples(split)
    return
  drawn = heapq.nsmallest(
      counts[split], enumerate(task.examples(split)),
      key=lambda one: _place(seed, split, one[0]))
  if len(drawn) < counts[split]:
    raise errors.UserError(
        f"the split {split!r} of the task {task.name} has {len(drawn):,} "
        f"examples and {counts[split]:,} are to be drawn of it: lower "
        "LOW_DATA_EXAMPLES")
  for _, example in sorted(drawn, key=lambda one: one[0]):
    yield example


def _place(seed: int, split: str, index: int) -> bytes:
  """Where an example stands in a random order.

  A digest, for what a generator draws may change with a library's version.
  """
  return hashlib.sha256(f"{seed} {split} {index}".encode()).digest()


def _fingerprint(
    task: tasks.Task, counts: dict[str, int], seed: int, split: str) -> str:
  source = task.fingerprint
  if callable(source):
    source = source(split)
  if not source or split not in counts:
    return source
  return hashlib.sha256(json.dumps(
      [1, source, counts[split], seed]).encode()).hexdigest()
