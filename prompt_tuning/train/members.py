"""The members of a sweep: what each of several runs has for itself."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
import re
from typing import Any

import gin
import optax

from prompt_tuning import errors, prompts
from prompt_tuning.train import settings

_RATE = "LEARNING_RATE"


@dataclasses.dataclass(frozen=True)
class Member:
  """One run among several that are trained together.

  Attributes:
    name: of its folder, "seed=1_learning_rate=0.3".
    settings: by what the sweep varies, for tables and cards.
    model: differs from the other members' in initial values only.
    optimizer: the same object where members have the same one.
    seed: of its initialisation, dropout, and the order of its data.
    train: its training data.
    loss: data of its teacher-forced evaluation, or None.
    metrics: data of its decoded evaluation, or None.
  """

  name: str
  settings: Mapping[str, Any]
  model: Any
  optimizer: optax.GradientTransformation
  seed: int
  train: settings.DatasetConfig
  loss: settings.DatasetConfig | None = None
  metrics: settings.DatasetConfig | None = None


def combinations(
    how: str, lists: Mapping[str, Sequence[Any] | None]
) -> list[dict[str, Any]]:
  """The settings of each member.

  Args:
    how: "product" for each value of a list with each of the others, "zip" for
      the first of all lists, the second of all, …
    lists: the values of each setting that varies; None for one that does not.

  Returns:
    `{setting: value}` of each member.

  Raises:
    UserError: on an empty list, two equal members, or lists of different
      lengths to zip.
  """
  varied = {name: list(values) for name, values in lists.items()
            if values is not None}
  for name, values in varied.items():
    if not values:
      raise errors.UserError(
          f"The sweep's list of {name} is empty: give at least one value, or "
          "None to leave it as it is.")
  if how == "product":
    rows = itertools.product(*varied.values())
  elif how == "zip":
    lengths = {name: len(values) for name, values in varied.items()}
    if len(set(lengths.values())) > 1:
      raise errors.UserError(
          f"SWEEP_MEMBERS = 'zip' needs lists of one length; they are "
          f"{', '.join(f'{n}: {k}' for n, k in lengths.items())}.")
    rows = zip(*varied.values())
  else:
    raise errors.UserError(
        f"SWEEP_MEMBERS is {how!r}: it can be 'product' or 'zip'.")
  found = [dict(zip(varied, row)) for row in rows]
  for one, other in itertools.combinations(found, 2):
    if folder_name(one) == folder_name(other):
      raise errors.UserError(
          f"Two members of the sweep are the same ({folder_name(one)}): "
          "remove one of the two equal values.")
  return found


def folder_name(chosen: Mapping[str, Any]) -> str:
  """Settings as the name of a folder."""
  text = "_".join(f"{name}={value}" for name, value in chosen.items())
  return re.sub(r"[^\w.=+-]", "-", text) or "member"


def with_initializer(model, initializer: prompts.Initializer):
  """The model with another initialiser of its prompt.

  Raises:
    UserError: if its method has no `prompt_init`.
  """
  factory = model.module.prompt_factory
  made = factory() if factory else None
  inner = getattr(made, "prompt", None)
  shared = getattr(inner, "shared", None)  # of prompts that differ by example
  if hasattr(shared, "prompt_init"):
    inner = inner.clone(shared=shared.clone(prompt_init=initializer))
  elif hasattr(inner, "prompt_init"):
    inner = inner.clone(prompt_init=initializer)
  else:
    raise errors.UserError(
        "PROMPT_INITIALIZERS are given, but the model has no prompt with a "
        "`prompt_init`: leave them out, or use prompts.Prompt.")
  other = functools.partial(made.clone, prompt=inner)
  return dataclasses.replace(
      model, module=model.module.clone(prompt_factory=other))


def on_task(dataset: settings.DatasetConfig | None, task: Any):
  """The dataset with another task in its place."""
  return dataset and dataclasses.replace(dataset, mixture_or_task_name=task)


def optimizer(value: optax.GradientTransformation):
  """What gin's `members.optimizer.value = %OPTIMIZER` makes, when called."""
  return value


def optimizer_at(
    make: Callable[[], optax.GradientTransformation], rate: float
) -> optax.GradientTransformation:
  """What `make` gives while gin's LEARNING_RATE is `rate`.

  Raises:
    UserError: if it does not depend on LEARNING_RATE.
  """
  with _macro(_RATE, rate):
    made = make()
    if f"\n{_RATE} = {rate!r}" not in gin.operative_config_str():
      raise errors.UserError(
          "LEARNING_RATES are given, but OPTIMIZER does not use "
          "LEARNING_RATE: bind its learning rate to %LEARNING_RATE.")
  return made


@contextlib.contextmanager
def _macro(name: str, value):
  """A gin macro has another value for a while."""
  key = f"{name}/gin.macro.value"
  before = gin.query_parameter(f"%{name}")
  gin.bind_parameter(key, value)
  try:
    yield
  finally:
    gin.bind_parameter(key, before)
