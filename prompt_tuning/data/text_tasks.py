"""Tasks of a dataset and steps, in the variants that the original has.

`X` has the task's name in front of its inputs, `taskless_X` has not, and
`task_index_X` has an id in its place, the highest of the vocabulary for the
first task and so on downwards (`<extra_id_0>`, … in T5's). `X_examples` also
shows some of its predictions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
from typing import Any

from prompt_tuning import versions
from prompt_tuning.data import tasks, texts, tfds


def make(
    name: str,
    dataset: tfds.Dataset,
    steps: Sequence[texts.Step],
    **settings,
) -> tasks.Task:
  """A task whose examples are a dataset's rows, taken through steps.

  Args:
    name: of the task.
    dataset: where rows come from.
    steps: functions of an iterator, the first of rows.
    **settings: other attributes of `tasks.Task`.
  """
  facts = [name, dataset.name, dict(dataset.splits), versions.__version__]
  return tasks.Task(
      name=name,
      examples=functools.partial(_examples, dataset, tuple(steps)),
      splits=tuple(dataset.splits),
      fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
      **settings)


def source_of(task: tasks.Task) -> tfds.Dataset | None:
  """The dataset of a task that `make` made."""
  made = getattr(task.examples, "args", ())
  return next((one for one in made if isinstance(one, tfds.Dataset)), None)


def steps_of(task: tasks.Task) -> tuple[texts.Step, ...]:
  """The steps of a task that `make` made."""
  return task.examples.args[1]


def _examples(
    dataset: tfds.Dataset, steps: tuple[texts.Step, ...], split: str
) -> Iterator[dict[str, Any]]:
  return run(steps, dataset.rows(split))


def run(
    steps: Sequence[texts.Step], rows: Iterator[Any]
) -> Iterator[dict[str, Any]]:
  """Examples of rows."""
  for step in steps:
    rows = step(rows)
  return rows


def variants(
    suffix: str,
    index: int,
    dataset: tfds.Dataset,
    steps: Sequence[texts.Step],
    text_fns: Sequence[Callable] = (),
    **settings,
) -> dict[str, tasks.Factory]:
  """The six variants of a task by name.

  Args:
    suffix: the name without what variants put around it.
    index: of the task, for `task_index_`.
    dataset: where rows come from.
    steps: of the variant with the task's name.
    text_fns: of `_examples`.
    **settings: other attributes of `tasks.Task`.
  """
  bare = (*steps, texts.without_first_word)
  kinds = {
      "": {"steps": tuple(steps)},
      "taskless_": {"steps": bare},
      "task_index_": {
          "steps": bare,
          "token_fn": functools.partial(with_index, index=index)}}
  return {
      f"{prefix}{suffix}{end}": functools.partial(
          make, f"{prefix}{suffix}{end}", dataset, **kind, **settings,
          text_fns=tuple(text_fns) if end else ())
      for prefix, kind in kinds.items() for end in ("", "_examples")}


def with_index(
    ids: Mapping[str, Sequence[int]], vocabularies: Mapping[str, Any],
    lengths: Mapping[str, int], index: int,
) -> Iterator[dict[str, list[int]]]:
  """A `token_fn`: the id of a task in front of the inputs."""
  del lengths
  first = vocabularies["inputs"].vocab_size - 1 - index
  yield {"inputs": [first, *ids["inputs"]], "targets": list(ids["targets"])}


def indexes(names: Sequence[str], same: Mapping[str, str]) -> dict[str, int]:
  """Task indexes: places in the order of names.

  Args:
    names: of the tasks that have an index of their own.
    same: further tasks, and whose index they share.
  """
  found = {name: place for place, name in enumerate(sorted(names))}
  return found | {name: found[other] for name, other in same.items()}


def rates(*names: str) -> dict[str, float]:
  """A mixture of tasks at rate 1 each."""
  return dict.fromkeys(names, 1.0)
