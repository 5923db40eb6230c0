"""Examples as token ids, cached on disk; and as the features of a model.

Ids of all examples lie in one flat array with offsets, so that a task is one
memory map however many examples it has, and any row is found at once.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
import warnings

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import tasks, vocabularies

# Changed whenever the same examples would be tokenised or stored otherwise.
_FORMAT = 1

FEATURES = ("inputs", "targets")

_ARRAYS = (
    "inputs", "inputs_offsets", "targets", "targets_offsets", "originals",
    "originals_offsets")


@dataclasses.dataclass(frozen=True)
class Truncation:
  """What did not fit: in how many examples, and how many tokens of them."""

  examples: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Examples:
  """N tokenised examples of one split of one task.

  Attributes:
    task_name: where they come from.
    split: where they come from.
    arrays: int32 ids `inputs` and `targets` of all examples on end, and int64
      `inputs_offsets`, `targets_offsets` [N + 1]; example i's inputs are
      `inputs[inputs_offsets[i]:inputs_offsets[i + 1]]`. The examples as the
      task gave them are lines of JSON in the uint8 array `originals`.
    truncated: per feature, what was cut.
    fingerprint: of the task, split, vocabularies and lengths; of the ids if
      the task has none.
  """

  task_name: str
  split: str
  arrays: Mapping[str, np.ndarray]
  truncated: Mapping[str, Truncation]
  fingerprint: str

  def __len__(self) -> int:
    return len(self.arrays["inputs_offsets"]) - 1

  def ids(self, feature: str, index: int) -> np.ndarray:
    """The ids [length] of one example, end-of-sequence included."""
    start, end = self._span(feature, index)
    return self.arrays[feature][start:end]

  def lengths(self, feature: str) -> np.ndarray:
    """The number of ids of every example, [N] int64."""
    return np.diff(self.arrays[f"{feature}_offsets"])

  def original(self, index: int) -> dict[str, Any]:
    """The example as the task gave it; arrays have become lists."""
    start, end = self._span("originals", index)
    return json.loads(self.arrays["originals"][start:end].tobytes())

  def _span(self, name: str, index: int) -> tuple[int, int]:
    offsets = self.arrays[f"{name}_offsets"]
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    return int(offsets[index]), int(offsets[index + 1])


def tokenize(
    task: tasks.Task,
    split: str,
    input_vocabulary: vocabularies.Vocabulary,
    target_vocabulary: vocabularies.Vocabulary,
    lengths: Mapping[str, int],
    cache_dir: str | os.PathLike | None = None,
) -> Examples:
  """Tokenises a split once, or reads it from the cache.

  Args:
    task: gives texts, or ids of the same vocabularies.
    split: one of `task.splits`.
    input_vocabulary: of the model's encoder.
    target_vocabulary: of the model's decoder.
    lengths: most ids of "inputs" and "targets", end-of-sequence included.
      Longer sequences are cut and end in it all the same.
    cache_dir: None keeps the ids in memory only.

  Raises:
    UserError: no such split, no examples, an example without inputs or
      targets, or ids of another vocabulary.
  """
  both = {"inputs": input_vocabulary, "targets": target_vocabulary}
  _check_request(task, split, both, lengths)
  key = _fingerprint(task, split, both, lengths)
  make = functools.partial(_tokenize, task, split, both, lengths, key)
  if cache_dir is None or key is None:
    return make()
  folder = pathlib.Path(cache_dir, f"{_file_name(task.name, split)}-{key[:16]}")
  if folder.is_dir():
    try:
      return _read(folder, key)
    except (OSError, ValueError, KeyError, TypeError) as error:
      warnings.warn(
          f"the tokenised examples in {folder} are damaged ({error}); they "
          "are made again", stacklevel=2)
      shutil.rmtree(folder, ignore_errors=True)
  examples = make()
  _write(examples, folder)
  return examples


def _check_request(task, split, both, lengths) -> None:
  if split not in task.splits:
    raise errors.UserError(
        f"the task {task.name} has no split {split!r}; it has "
        f"{', '.join(task.splits)}")
  for feature in FEATURES:
    if lengths.get(feature, 0) < 1:
      raise errors.UserError(
          f"TASK_FEATURE_LENGTHS must give a length of at least 1 for "
          f"{feature!r}; it is {dict(lengths)}")
    own = task.feature_vocabularies.get(feature)
    if own is not None and not own.same_as(both[feature]):
      raise errors.UserError(
          f"the {feature} of the task {task.name} are ids of {own}, the "
          f"model's vocabulary is {both[feature]}; give both the same one")


def _fingerprint(task, split, both, lengths) -> str | None:
  """The cache's key; None when the task does not know its examples."""
  source = task.fingerprint
  if callable(source):
    source = source(split)
  if not source:
    return None
  facts = [_FORMAT, source, split]
  for name in FEATURES:
    facts += [both[name].fingerprint, lengths[name], name in task.without_eos]
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _tokenize(task, split, both, lengths, fingerprint) -> Examples:
  rows = {name: _Rows(np.int32) for name in FEATURES}
  originals = _Rows(np.uint8)
  cut = {name: [0, 0] for name in FEATURES}
  for number, example in enumerate(task.examples(split), start=1):
    for name in FEATURES:
      if name not in example:
        raise errors.UserError(
            f"example {number} of {task.name}/{split} has no {name!r}, only "
            f"{', '.join(map(str, example))}")
      ids = sequence_ids(
          example[name], both[name], name not in task.without_eos)
      kept = truncate(ids, lengths[name], both[name].eos_id)
      if len(kept) < len(ids):
        cut[name][0] += 1
        cut[name][1] += len(ids) - len(kept)
      rows[name].append(kept)
    line = json.dumps(example, default=jsonable, ensure_ascii=False) + "\n"
    originals.append(np.frombuffer(line.encode(), np.uint8))
  if not len(originals):
    raise errors.UserError(
        f"the split {split!r} of the task {task.name} has no examples; check "
        "its source")
  arrays = {}
  for name, values in (*rows.items(), ("originals", originals)):
    arrays[name], arrays[f"{name}_offsets"] = values.flat()
  return Examples(
      task.name, split, arrays,
      {name: Truncation(*counts) for name, counts in cut.items()},
      fingerprint or _content_fingerprint(arrays))


def _content_fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in _ARRAYS:
    digest.update(arrays[name])
  return digest.hexdigest()


class _Rows:
  """Rows of different lengths on end, as bytes until all are there."""

  def __init__(self, dtype):
    self._dtype = dtype
    self._bytes = bytearray()
    self._ends = [0]

  def __len__(self):
    return len(self._ends) - 1

  def append(self, row) -> None:
    row = np.asarray(row, self._dtype)
    self._bytes += row.tobytes()
    self._ends.append(self._ends[-1] + len(row))

  def flat(self) -> tuple[np.ndarray, np.ndarray]:
    return (np.frombuffer(self._bytes, self._dtype),
            np.asarray(self._ends, np.int64))


def sequence_ids(
    value: Any, vocabulary: vocabularies.Vocabulary, add_eos: bool = True
) -> list[int]:
  """A text's or a list's ids, ending in exactly one end-of-sequence.

  Args:
    value: a text, or ids with or without an end-of-sequence at their end.
    vocabulary: encodes texts.
    add_eos: False leaves lists as they are and texts without one.
  """
  if isinstance(value, bytes):
    value = value.decode("utf-8")
  if isinstance(value, str):
    ids = vocabulary.encode(value)
  else:
    ids = [int(i) for i in value]
  if add_eos and (not ids or ids[-1] != vocabulary.eos_id):
    ids = [*ids, vocabulary.eos_id]
  return ids


def truncate(ids: Sequence[int], length: int, eos_id: int) -> Sequence[int]:
  """The first ids; the last of them ends the sequence if it did before."""
  if len(ids) <= length:
    return ids
  if ids[-1] == eos_id:
    return [*ids[:length - 1], eos_id]
  return ids[:length]


def model_features(
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    inputs_length: int,
    targets_length: int,
) -> dict[str, np.ndarray]:
  """Padded features of an encoder-decoder, named and typed as T5X's.

  Args:
    inputs: B sequences of at most `inputs_length` ids.
    targets: B sequences of at most `targets_length` ids.
    inputs_length: T.
    targets_length: the same for targets.

  Returns:
    int32 arrays: `encoder_input_tokens` [B, T]; `decoder_target_tokens`,
    `decoder_input_tokens` (targets moved right by one, 0 in front) and
    `decoder_loss_weights` (1 on targets, 0 on padding) [B, targets_length].
  """
  decoder_targets = _padded(targets, targets_length)
  decoder_inputs = np.zeros_like(decoder_targets)
  decoder_inputs[:, 1:] = decoder_targets[:, :-1]
  weights = (decoder_targets != vocabularies.PAD_ID).astype(np.int32)
  return {
      "encoder_input_tokens": _padded(inputs, inputs_length),
      "decoder_input_tokens": decoder_inputs,
      "decoder_target_tokens": decoder_targets,
      "decoder_loss_weights": weights,
  }


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
  padded = np.full((len(rows), length), vocabularies.PAD_ID, np.int32)
  for row, ids in zip(padded, rows):
    row[:len(ids)] = ids
  return padded


def jsonable(value: Any) -> Any:
  """What numpy and TensorFlow Datasets put in examples, as JSON has it."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if isinstance(value, (np.ndarray, np.generic)):
    return value.tolist()
  raise errors.UserError(
      f"an example holds {type(value).__name__} {value!r}, which is neither "
      "text nor number; leave it out or convert it in the task")


def _file_name(*parts: str) -> str:
  """Names as they may stand in a path."""
  return "-".join(
      "".join(c if c.isalnum() or c in "._" else "_" for c in part)
      for part in parts)


def _write(examples: Examples, folder: pathlib.Path) -> None:
  """Writes a cache entry that is there whole or not at all."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(
        prefix=f".{folder.name}-", dir=folder.parent))
  except OSError as error:
    raise errors.UserError(
        f"cannot write tokenised examples to {folder.parent}: "
        f"{error.strerror}; name a writable folder") from error
  try:
    _write_files(examples, unfinished)
    try:
      os.rename(unfinished, folder)
    except OSError:
      if not folder.is_dir():
        raise
      # Another process was quicker with the same examples.
  except OSError as error:
    raise errors.UserError(
        f"cannot write tokenised examples to {folder}: {error.strerror}; make "
        "room or name another folder") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _write_files(examples: Examples, folder: pathlib.Path) -> None:
  sums = {}
  for name in _ARRAYS:
    with open(folder / f"{name}.npy", "wb") as file:
      np.save(file, examples.arrays[name], allow_pickle=False)
      _sync(file)
    sums[name] = _sha256(folder / f"{name}.npy")
  index = {
      "task": examples.task_name,
      "split": examples.split,
      "fingerprint": examples.fingerprint,
      "truncated": {name: [cut.examples, cut.tokens]
                    for name, cut in examples.truncated.items()},
      "sha256": sums,
  }
  with open(folder / "index.json", "w", encoding="utf-8") as file:
    json.dump(index, file, indent=2)
    _sync(file)


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())


def _read(folder: pathlib.Path, fingerprint: str) -> Examples:
  """Reads a cache entry; any exception but UserError means damage."""
  index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
  if index["fingerprint"] != fingerprint:
    raise ValueError("another fingerprint")
  arrays = {}
  for name in _ARRAYS:
    path = folder / f"{name}.npy"
    if _sha256(path) != index["sha256"][name]:
      raise ValueError(f"{path.name} has another sha256")
    # A view of the map as a plain array: slices of np.memmap are slow.
    arrays[name] = np.asarray(
        np.load(path, mmap_mode="r", allow_pickle=False))
  truncated = {name: Truncation(*index["truncated"][name])
               for name in FEATURES}
  return Examples(
      index["task"], index["split"], arrays, truncated, fingerprint)


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
