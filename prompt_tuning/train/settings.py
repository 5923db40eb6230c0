"""Settings of a run that gin binds, under T5X's names.

They are registered in gin as `utils.DatasetConfig`, … whatever the gin file
imports, so that command lines written for T5X bind them unchanged.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import gin

from prompt_tuning import errors

_WEIGHT_DTYPES = ("float32", "bfloat16", "int8")


def check_positive(name: str, value: Any) -> None:
  """Raises a `UserError` unless `value` is a whole number from 1 up."""
  if type(value) is not int or value < 1:
    raise errors.UserError(
        f"{name} is {value!r}: it must be a whole number from 1 up.")


@gin.configurable(module="prompt_tuning.utils")
@dataclasses.dataclass
class DatasetConfig:
  """What to read, and in which shape.

  Attributes:
    mixture_or_task_name: a registered name, or a task object
      (`files.FileTask()`).
    task_feature_lengths: {"inputs": T, "targets": U}; longer examples are cut
      and counted.
    split: such as "train".
    batch_size: of the whole run, all devices together.
    shuffle: T5X's switch; training data are always shuffled, evaluation data
      never are.
    seed: of the order of the training data; the run's seed if None.
    bucket_lengths: input lengths to pad to, "auto", or None for one length.
    cache_dir: where tokenised examples are kept; in the model's folder if
      None.
    use_cached: T5X's switch; examples are always tokenised once and cached.
    pack: must be False, a prompt belongs to one example.
    module: a Python module to import first, which registers the task.
  """

  mixture_or_task_name: Any
  task_feature_lengths: Mapping[str, int]
  split: str = "train"
  batch_size: int = 128
  shuffle: bool = True
  seed: int | None = None
  bucket_lengths: Sequence[int] | str | None = None
  cache_dir: str | None = None
  use_cached: bool = True
  pack: bool = False
  module: str | None = None

  def __post_init__(self):
    if self.pack:
      raise errors.UserError(
          "utils.DatasetConfig.pack is True, but a prompt belongs to one "
          "example: set it to False.")
    check_positive("BATCH_SIZE (utils.DatasetConfig.batch_size)",
                   self.batch_size)
    if not isinstance(self.task_feature_lengths, Mapping):
      raise errors.UserError(
          f"TASK_FEATURE_LENGTHS is {self.task_feature_lengths!r}: write it "
          "as {'inputs': 512, 'targets': 8}.")
    for name in ("inputs", "targets"):
      length = self.task_feature_lengths.get(name, 0)
      if not isinstance(length, int) or length < 1:
        raise errors.UserError(
            f"TASK_FEATURE_LENGTHS needs a positive length for {name!r}, as "
            "in {'inputs': 512, 'targets': 8}; it is "
            f"{dict(self.task_feature_lengths)}.")


@gin.configurable(module="prompt_tuning.utils")
@dataclasses.dataclass
class SaveCheckpointConfig:
  """When to save.

  Attributes:
    period: steps between saves; the last step is always saved.
    keep: how many checkpoints stay; None keeps all.
    model_dtype: "float32" or "bfloat16", of the whole model that a run writes
      at its end if it trained the base.
    max_shard_bytes: of one file of that model; the largest tensor may exceed
      it.
    best: a metric of the evaluations, see `best.Best`: the state of the best
      one is kept besides. None keeps none.
  """

  period: int = 1000
  keep: int | None = 1
  model_dtype: str = "float32"
  max_shard_bytes: int = 5_000_000_000
  best: str | None = None

  def __post_init__(self):
    check_positive("SAVE_PERIOD (utils.SaveCheckpointConfig.period)",
                   self.period)
    check_positive("MAX_SHARD_BYTES (utils.SaveCheckpointConfig."
                   "max_shard_bytes)", self.max_shard_bytes)
    if self.model_dtype not in ("float32", "bfloat16"):
      raise errors.UserError(
          f"MODEL_DTYPE (utils.SaveCheckpointConfig.model_dtype) is "
          f"{self.model_dtype!r}: it can be float32 or bfloat16.")


@gin.configurable(module="prompt_tuning.utils")
@dataclasses.dataclass
class RestoreCheckpointConfig:
  """Which base weights to start from.

  Attributes:
    path: a T5X checkpoint or a Hugging Face directory; None trains from
      scratch, which needs TRAINABLE_REGEX to match every parameter.
    dtype: of the frozen weights in memory, "float32", "bfloat16" or "int8"
      (of kernels and embedding tables, see `models.quantized`; the rest is
      float32); trained parameters are always float32.
    step: the step that the run and its Adafactor count from; the
      checkpoint's own if None, 0 where it has none (Hugging Face).
  """

  path: str | None
  dtype: str = "float32"
  step: int | None = None

  def __post_init__(self):
    if self.step is not None and (type(self.step) is not int or self.step < 0):
      raise errors.UserError(
          f"INITIAL_STEP (utils.RestoreCheckpointConfig.step) is "
          f"{self.step!r}: it must be a whole number from 0 up, or None.")
    if self.dtype not in _WEIGHT_DTYPES:
      raise errors.UserError(
          f"WEIGHT_DTYPE (utils.RestoreCheckpointConfig.dtype) is "
          f"{self.dtype!r}: it can be {' or '.join(_WEIGHT_DTYPES)}.")
