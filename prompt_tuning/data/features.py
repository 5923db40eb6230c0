"""Texts to token ids, and ids to the padded features of a model.

What differs between kinds of models is in `EncoderDecoder`, `DecoderOnly` and
`MaskedLM`, one of which every model has as its attribute `features`. Ids are
kept on disk by `token_ids`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, ClassVar
import warnings

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import tasks, token_ids, vocabularies

# Changed whenever the same examples would be tokenised or stored otherwise.
_FORMAT = 1

FEATURES = ("inputs", "targets")


class Encoding:
  """How a kind of model takes examples; each one is a subclass."""

  def target_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of targets; see `sequence_ids`."""
    return sequence_ids(value, vocabulary, add_eos)


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Encoding):
  """Inputs are read by an encoder: they end in an end-of-sequence.

  Attributes:
    names: of the arrays that `padded` makes.
    empty_inputs: whether the inputs of an example may have no id.
  """

  names: ClassVar[tuple[str, ...]] = (
      "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens",
      "decoder_loss_weights")
  empty_inputs: ClassVar[bool] = True
  # What the decoder reads first.
  start_id = vocabularies.PAD_ID

  def input_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of inputs; see `sequence_ids`."""
    return sequence_ids(value, vocabulary, add_eos)

  def cut_inputs(
      self, ids: Sequence[int], length: int,
      vocabulary: vocabularies.Vocabulary,
  ) -> Sequence[int]:
    """At most `length` ids of inputs; see `truncate`."""
    return truncate(ids, length, vocabulary.eos_id)

  def padded(self, *args, **kwargs) -> dict[str, np.ndarray]:
    """See `model_features`."""
    return model_features(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class FramedEncoderDecoder(EncoderDecoder):
  """BART's: all texts stand in what the tokenizer puts around them.

  Attributes:
    pad_id: of padding; 0 begins a text.
    start_id: what the decoder reads first.
  """

  pad_id: int
  start_id: int

  def input_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of inputs; to ids, only an end-of-sequence is added."""
    return self._framed(value, vocabulary, add_eos)

  def target_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of targets, in the same frame."""
    return self._framed(value, vocabulary, add_eos)

  def padded(
      self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
      inputs_length: int, targets_length: int,
  ) -> dict[str, np.ndarray]:
    """`model_features` with this padding and this start."""
    counts = np.array([[len(ids)] for ids in targets], np.int32)
    decoder_targets = _padded(targets, targets_length, self.pad_id)
    decoder_inputs = np.full_like(decoder_targets, self.start_id)
    decoder_inputs[:, 1:] = decoder_targets[:, :-1]
    return {
        "encoder_input_tokens": _padded(inputs, inputs_length, self.pad_id),
        "decoder_input_tokens": decoder_inputs,
        "decoder_target_tokens": decoder_targets,
        "decoder_loss_weights": (
            np.arange(targets_length) < counts).astype(np.int32),
    }

  def _framed(self, value, vocabulary, add_eos) -> list[int]:
    if isinstance(value, bytes):
      value = value.decode("utf-8")
    if isinstance(value, str):
      value = [*vocabulary.frame[0], *vocabulary.encode(value)]
    return sequence_ids(value, vocabulary, add_eos)


@dataclasses.dataclass(frozen=True)
class DecoderOnly(Encoding):
  """Inputs are a text that the targets go on from: nothing ends them.

  What the tokenizer puts in front of a text (its beginning-of-sequence) is in
  front of the inputs. Too long inputs lose their start, for the targets follow
  on their end.

  Attributes:
    names: of the arrays that `padded` makes.
    empty_inputs: whether the inputs of an example may have no id; the first
      target is predicted from the last of them.
  """

  names: ClassVar[tuple[str, ...]] = (
      "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights",
      "decoder_target_positions")
  empty_inputs: ClassVar[bool] = False

  def input_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of inputs.

    Args:
      value: a text, or ids, to which nothing is added.
      vocabulary: encodes texts.
      add_eos: whether an encoder would get an end-of-sequence. If so, one
        that ids end in is for an encoder, and is left out; if not, ids stay as
        they are.
    """
    if isinstance(value, bytes):
      value = value.decode("utf-8")
    if isinstance(value, str):
      return vocabulary.encode_inputs(value)
    ids = [int(i) for i in value]
    return ids[:-1] if add_eos and ids[-1:] == [vocabulary.eos_id] else ids

  def cut_inputs(
      self, ids: Sequence[int], length: int,
      vocabulary: vocabularies.Vocabulary,
  ) -> Sequence[int]:
    """The last ids, behind what the tokenizer puts in front of every text."""
    if len(ids) <= length:
      return ids
    front = vocabulary.encode_inputs("")
    kept = len(front) if (
        len(front) < length and list(ids[:len(front)]) == front) else 0
    return [*ids[:kept], *ids[len(ids) - (length - kept):]]

  def padded(self, *args, **kwargs) -> dict[str, np.ndarray]:
    """See `decoder_only_features`."""
    return decoder_only_features(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class MaskedLM(Encoding):
  """Inputs are a text with one mask, in whose place the target belongs.

  A text that is too long loses what stands farthest from the mask, on its
  longer side; never the mask, nor what the tokenizer puts around the text.

  Attributes:
    mask_id: of the mask.
    names: of the arrays that `padded` makes.
    empty_inputs: there is a mask at least.
  """

  mask_id: int
  names: ClassVar[tuple[str, ...]] = (
      "encoder_input_tokens", "encoder_input_mask", "encoder_mask_positions",
      "decoder_target_tokens", "decoder_loss_weights")
  empty_inputs: ClassVar[bool] = False

  def input_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The ids of inputs, in what the tokenizer puts around a text.

    Args:
      value: a text, or ids, to which nothing is added.
      vocabulary: encodes texts.
      add_eos: of no meaning here.

    Raises:
      UserError: if there is not exactly one mask.
    """
    del add_eos
    if isinstance(value, bytes):
      value = value.decode("utf-8")
    if isinstance(value, str):
      before, behind = vocabulary.frame
      ids = [*before, *vocabulary.encode(value), *behind]
    else:
      ids = [int(i) for i in value]
    if ids.count(self.mask_id) != 1:
      raise errors.UserError(
          f"the inputs {str(value)[:80]!r} have {ids.count(self.mask_id)} "
          "masks and a masked language model needs exactly one: put "
          f"{vocabulary.piece(self.mask_id)} in the task's INPUTS, where the "
          "label belongs")
    return ids

  def cut_inputs(
      self, ids: Sequence[int], length: int,
      vocabulary: vocabularies.Vocabulary,
  ) -> Sequence[int]:
    """At most `length` ids, the mask among them."""
    extra = len(ids) - length
    if extra <= 0:
      return ids
    before, behind = (
        len(part) if whole else 0 for part, whole in zip(
            vocabulary.frame, _stands_in(ids, *vocabulary.frame)))
    if length <= before + behind:
      raise errors.UserError(
          f"TASK_FEATURE_LENGTHS['inputs'] is {length}, which leaves no room "
          f"for the mask: the tokenizer puts {before + behind} tokens around "
          "every text; raise it")
    left = list(ids).index(self.mask_id) - before  # tokens before the mask
    right = len(ids) - behind - before - left - 1
    # The longer side first, then both evenly.
    from_left = min(max(left - right, 0), extra)
    from_right = min(max(right - left, 0), extra)
    evenly = extra - from_left - from_right
    from_left += evenly // 2
    from_right += evenly - evenly // 2
    end = len(ids) - behind
    return [*ids[:before], *ids[before + from_left:end - from_right],
            *ids[end:]]

  def target_ids(
      self, value: Any, vocabulary: vocabularies.Vocabulary,
      add_eos: bool = True,
  ) -> list[int]:
    """The one id of a target; none where there is nothing to predict.

    Args:
      value: a text, such as " great", or ids.
      vocabulary: encodes texts.
      add_eos: of no meaning here: nothing ends a word.

    Raises:
      UserError: if it is of several tokens.
    """
    del add_eos
    ids = sequence_ids(value, vocabulary, add_eos=False)
    if len(ids) > 1:
      raise errors.UserError(
          f"the target {value!r} has {len(ids)} tokens and a masked language "
          "model predicts one: give a word that is a single token in the "
          "task's LABELS, with its space in front, such as ' great'")
    return ids

  def padded(
      self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
      inputs_length: int, targets_length: int,
  ) -> dict[str, np.ndarray]:
    """Padded features.

    Args:
      inputs: B sequences of at most `inputs_length` ids.
      targets: B sequences of at most one id.
      inputs_length: T.
      targets_length: U, which is 1.

    Returns:
      int32 arrays: `encoder_input_tokens` and `encoder_input_mask` (1 on text,
      0 on padding) [B, T]; `encoder_mask_positions`, `decoder_target_tokens`
      and `decoder_loss_weights` (1 where there is a target) [B, U].
    """
    lengths = np.array([[len(ids)] for ids in inputs], np.int32)  # [B, 1]
    places = [[list(ids).index(self.mask_id)] for ids in inputs]
    counts = np.array([[len(ids)] for ids in targets], np.int32)
    return {
        "encoder_input_tokens": _padded(inputs, inputs_length),
        "encoder_input_mask": (
            np.arange(inputs_length) < lengths).astype(np.int32),
        "encoder_mask_positions": np.repeat(
            np.array(places, np.int32), targets_length, axis=1),
        "decoder_target_tokens": _padded(targets, targets_length),
        "decoder_loss_weights": (
            np.arange(targets_length) < counts).astype(np.int32),
    }


def _stands_in(
    ids: Sequence[int], before: Sequence[int], behind: Sequence[int]
) -> tuple[bool, bool]:
  """Whether ids begin with the one and end in the other."""
  return (list(ids[:len(before)]) == list(before),
          list(ids[len(ids) - len(behind):]) == list(behind))


def tokenize(
    task: tasks.Task,
    split: str,
    input_vocabulary: vocabularies.Vocabulary,
    target_vocabulary: vocabularies.Vocabulary,
    lengths: Mapping[str, int],
    cache_dir: str | os.PathLike | None = None,
    encoding: Encoding = EncoderDecoder(),
) -> token_ids.Examples:
  """Tokenises a split once, or reads it from the cache.

  Args:
    task: gives texts, or ids of the same vocabularies.
    split: one of `task.splits`.
    input_vocabulary: of the inputs.
    target_vocabulary: of the targets; for a model with one vocabulary, the
      same.
    lengths: most ids of "inputs" and "targets", end-of-sequence included.
      Longer sequences are cut; targets end in it all the same.
    cache_dir: None keeps the ids in memory only.
    encoding: of the kind of model.

  Raises:
    UserError: no such split, no examples, an example without inputs or
      targets, or ids of another vocabulary.
  """
  both = {"inputs": input_vocabulary, "targets": target_vocabulary}
  _check_request(task, split, both, lengths, encoding)
  key = _fingerprint(task, split, both, lengths, encoding)
  make = functools.partial(
      _tokenize, task, split, both, lengths, encoding, key)
  if cache_dir is None or key is None:
    return make()
  folder = pathlib.Path(cache_dir, f"{_file_name(task.name, split)}-{key[:16]}")
  if folder.is_dir():
    try:
      return token_ids.read(folder, key)
    except (OSError, ValueError, KeyError, TypeError) as error:
      warnings.warn(
          f"the tokenised examples in {folder} are damaged ({error}); they "
          "are made again", stacklevel=2)
      shutil.rmtree(folder, ignore_errors=True)
  examples = make()
  token_ids.write(examples, folder)
  return examples


def _check_request(task, split, both, lengths, encoding) -> None:
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
  if task.input_end is not None and not isinstance(encoding, DecoderOnly):
    raise errors.UserError(
        f"the task {task.name} puts {task.input_end!r} behind its inputs, "
        "which is for decoder-only models alone: leave SEPARATOR out")


def _fingerprint(task, split, both, lengths, encoding) -> str | None:
  """The cache's key; None when the task does not know its examples."""
  source = task.fingerprint
  if callable(source):
    source = source(split)
  if not source:
    return None
  facts = [_FORMAT, source, split, repr(encoding)]
  if task.input_end is not None:
    facts.append(task.input_end)
  for name in FEATURES:
    facts += [both[name].fingerprint, lengths[name], name in task.without_eos]
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _tokenize(
    task, split, both, lengths, encoding, fingerprint
) -> token_ids.Examples:
  rows = {name: token_ids.Rows(np.int32) for name in FEATURES}
  originals = token_ids.Rows(np.uint8)
  cut = {name: [0, 0] for name in FEATURES}
  found = task.examples(split)
  if task.token_fn is not None:
    found = _from_ids(task, found, both, lengths, encoding)
  for number, example in enumerate(found, start=1):
    place = f"example {number} of {task.name}/{split}"
    for name, (ids, kept) in _encoded(
        task, example, both, lengths, encoding, place).items():
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
  return token_ids.Examples(
      task.name, split, arrays,
      {name: token_ids.Truncation(*counts) for name, counts in cut.items()},
      fingerprint or token_ids.content_fingerprint(arrays))


def _from_ids(task, examples, both, lengths, encoding):
  """The examples that a task makes of the ids of its texts."""
  for example in examples:
    ids = {
        "inputs": encoding.input_ids(example["inputs"], both["inputs"], False),
        "targets": both["targets"].encode(example["targets"])}
    texts = {f"{name}_pretokenized": example[name] for name in FEATURES}
    for made in task.token_fn(ids, both, lengths):
      yield {**example, **texts, **made}


def _encoded(task, example, both, lengths, encoding, place):
  """All ids and those that are kept, by feature."""
  for name in FEATURES:
    if name not in example:
      raise errors.UserError(
          f"{place} has no {name!r}, only {', '.join(map(str, example))}")
  inputs = encoding.input_ids(
      example["inputs"], both["inputs"], "inputs" not in task.without_eos)
  if not inputs and not encoding.empty_inputs:
    raise errors.UserError(
        f"{place} has empty inputs, and {both['inputs']} puts no "
        "beginning-of-sequence in front, so a decoder-only model has nothing "
        "to go on from; give the task inputs with some text around them, as "
        "'Review: {text}'")
  targets = encoding.target_ids(
      example["targets"], both["targets"], "targets" not in task.without_eos)
  return {
      "inputs": _cut_in_front_of(
          task.input_end, inputs, lengths["inputs"], both["inputs"]
      ) if task.input_end is not None else (inputs, encoding.cut_inputs(
          inputs, lengths["inputs"], both["inputs"])),
      "targets": (targets, truncate(
          targets, lengths["targets"], both["targets"].eos_id)),
  }


def _cut_in_front_of(end, ids, length, vocabulary):
  """Ids with an end behind them: all of them, and at most `length`."""
  end = vocabulary.encode(end)
  if len(end) >= length:
    raise errors.UserError(
        f"TASK_FEATURE_LENGTHS['inputs'] is {length}, and the text that "
        f"separates inputs from targets has {len(end)} tokens; raise it")
  return [*ids, *end], [*ids[:length - len(end)], *end]


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


def decoder_only_features(
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    inputs_length: int,
    targets_length: int,
) -> dict[str, np.ndarray]:
  """Padded features of a decoder-only model; no padding within a text.

  Id 0 may be a token, so what is padding is told by lengths alone: row i has
  `decoder_target_positions[i, 0] + 1` inputs.

  Args:
    inputs: B sequences of 1 to `inputs_length` ids.
    targets: B sequences of at most `targets_length` ids.
    inputs_length: T.
    targets_length: U.

  Returns:
    int32 arrays: `decoder_input_tokens` [B, T + U] (inputs, then targets but
    for the last), `decoder_target_tokens` and `decoder_loss_weights` (1 on
    targets, 0 on padding) [B, U], and `decoder_target_positions` [B, U], the
    index among the input tokens of what each target is predicted from.
  """
  texts = [[*one, *other[:-1]]
           for one, other in zip(inputs, targets, strict=True)]
  index = np.arange(targets_length, dtype=np.int32)[None]  # [1, U]
  starts = np.array([[len(ids)] for ids in inputs], np.int32)  # [B, 1]
  counts = np.array([[len(ids)] for ids in targets], np.int32)
  return {
      "decoder_input_tokens": _padded(texts, inputs_length + targets_length),
      "decoder_target_tokens": _padded(targets, targets_length),
      "decoder_loss_weights": (index < counts).astype(np.int32),
      "decoder_target_positions": starts - 1 + index,
  }


def _padded(
    rows: Sequence[Sequence[int]], length: int,
    pad_id: int = vocabularies.PAD_ID,
) -> np.ndarray:
  padded = np.full((len(rows), length), pad_id, np.int32)
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
