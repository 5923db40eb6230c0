"""GLUE tasks from TensorFlow Datasets, under the original's names.

A dataset is downloaded by TFDS the first time that a split is read.
"""

from collections.abc import Iterator

from prompt_tuning import errors
from prompt_tuning.data import tasks
from prompt_tuning.metrics import accuracy

_SST2 = "glue/sst2:2.0.0"
_SST2_LABELS = {0: "negative", 1: "positive"}
# What T5 writes for a label that is not public (GLUE's test splits).
_UNKNOWN = "<unk>"


def sst2_text(row) -> dict[str, str]:
  """A row of SST-2 as T5 has it, without the task's name in front.

  Args:
    row: has `sentence` (bytes or text) and `label`.

  Returns:
    {"inputs": "sentence: …", "targets": "positive" or "negative"}.
  """
  sentence = row["sentence"]
  if isinstance(sentence, bytes):
    sentence = sentence.decode("utf-8")
  return {
      "inputs": f"sentence: {sentence}",
      "targets": _SST2_LABELS.get(int(row["label"]), _UNKNOWN),
  }


def taskless_glue_sst2_v200_examples() -> tasks.Task:
  """SST-2 of TFDS 2.0.0: splits train, validation and test."""
  return tasks.Task(
      name="taskless_glue_sst2_v200_examples", examples=_sst2,
      splits=("train", "validation", "test"),
      metric_fns=(accuracy.accuracy,), fingerprint=_SST2)


def _sst2(split: str) -> Iterator[dict[str, str]]:
  import tensorflow_datasets as tfds  # several seconds, and TensorFlow

  try:
    data = tfds.load(_SST2, split=split)
  except Exception as error:  # TFDS raises whatever its downloader raised
    raise errors.UserError(
        f"TFDS could not load {_SST2} ({type(error).__name__}): it needs the "
        "network once, or --tfds_data_dir with the prepared data; without "
        "either, give your own files by configs/tasks/from_files.gin."
    ) from error
  for row in tfds.as_numpy(data):
    yield sst2_text(row)
