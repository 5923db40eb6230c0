"""Datasets of TensorFlow Datasets as plain rows, opened when they are read.

A dataset is downloaded and prepared by TFDS the first time that a split is
read. TensorFlow comes with it, takes seconds to import and would reserve the
accelerators' memory, which it is kept from here.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
from typing import Any

from prompt_tuning import errors

Row = dict[str, Any]

_STANDARD = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset and what its splits are called.

  Attributes:
    name: "dataset/config:version", as TFDS has it.
    splits: a task's split to TFDS's, which may be a part of one,
      "train[:-1000]".
  """

  name: str
  splits: Mapping[str, str]

  def rows(self, split: str) -> Iterator[Row]:
    """The rows of a split, in TFDS's order: texts, numbers, lists, dicts.

    Raises:
      UserError: the data is not here and cannot be downloaded; the message
        has the command that would.
    """
    tfds = _tfds(self.name)
    try:
      data = tfds.load(self.name, split=self.splits[split])
    except Exception as error:  # TFDS raises whatever its downloader raised
      raise errors.UserError(_absent(self.name, error)) from error
    for row in tfds.as_numpy(data):
      yield plain(row)


def dataset(name: str, splits=_STANDARD) -> Dataset:
  """A dataset with splits under TFDS's names, or by a mapping."""
  if not isinstance(splits, Mapping):
    splits = {split: split for split in splits}
  return Dataset(name, dict(splits))


def plain(value: Any) -> Any:
  """Bytes as text, arrays as lists, numpy's numbers as Python's."""
  if isinstance(value, Mapping):
    return {name: plain(one) for name, one in value.items()}
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [plain(one) for one in value]
  return value


def _tfds(name: str):
  try:
    import tensorflow as tf
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.UserError(
        f"{name} is read by TensorFlow Datasets, which cannot be imported "
        f"({error}): pip install tensorflow tensorflow-datasets") from error
  for kind in ("GPU", "TPU"):
    # Too late when the user's own code has already run TensorFlow.
    with contextlib.suppress(RuntimeError):
      tf.config.set_visible_devices([], kind)
  return tfds


def _absent(name: str, error: Exception) -> str:
  folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  where = name.replace(":", "/")
  return (
      f"TFDS could not load {name} ({type(error).__name__}): where there is a "
      f"network, `tfds build {name} --data_dir={folder}` puts it into "
      f"{folder}/{where}, which --tfds_data_dir={folder} reads; or give your "
      "own files by configs/tasks/from_files.gin.")
