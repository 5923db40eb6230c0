"""Batches to train and to evaluate on, with a position that can be restored.

Batch number i is a function of the examples, the seed and i alone: a resumed
run computes where it goes on and replays nothing, and every process of a run
on many hosts takes its rows of the same batch.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
from typing import Any, NamedTuple
import warnings

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import features, token_ids, valid_labels

Batch = dict[str, np.ndarray]
Lengths = Mapping[str, int]

# Every bucket is one more compilation of the step, so `auto` has few.
_AUTO_BUCKETS = 4

# Lengths that `auto` chooses from are multiples of it; see `auto_buckets`.
_AUTO_MULTIPLE = 16


class TrainBatches:
  """An endless iterator of shuffled batches of one or several tasks.

  Examples are grouped in buckets by the length of their inputs, and a batch
  is padded to its bucket's length only. Each bucket shuffles anew in every
  epoch; buckets take turns in proportion to their examples, so that all
  examples are seen equally often. Several tasks are mixed inside each batch.
  """

  def __init__(
      self,
      examples: token_ids.Examples | Sequence[tuple[token_ids.Examples, float]],
      batch_size: int,
      seed: int,
      lengths: Lengths,
      bucket_lengths: Sequence[int] | str | None = None,
      process_index: int = 0,
      process_count: int = 1,
      encoding: features.Encoding = features.EncoderDecoder(),
  ):
    """Plans the batches; nothing is padded before it is asked for.

    Args:
      examples: of one task, or (examples, rate) of several, where a rate is
        the share of an example of that task in the stream.
      batch_size: B, over all processes.
      seed: of the order of examples.
      lengths: of the padded "inputs" and "targets".
      bucket_lengths: lengths of inputs to pad to, "auto" for up to 4 lengths
        that fit the examples, None to pad all to `lengths["inputs"]`.
      process_index: which rows of each batch to give: the `process_index`th
        of `process_count` equal parts.
      process_count: how many processes share a batch.
      encoding: what the examples were tokenised with.

    Raises:
      UserError: the batch cannot be shared evenly, or no rate is positive.
    """
    self._tasks = _positive_rates(examples)
    self._lengths = dict(lengths)
    self._batch_size = batch_size
    self._encoding = encoding
    self._encoder_length = _encoder_length([one for one, _ in self._tasks])
    self._rows = process_rows(batch_size, process_index, process_count)
    wanted = _bucket_lengths(
        bucket_lengths, [one for one, _ in self._tasks], lengths["inputs"])
    buckets = _members(self._tasks, wanted, batch_size)
    self._buckets = tuple(length for length, _ in buckets)
    self._plan = _plan(self._tasks, buckets, batch_size, seed)
    self._fingerprint = _order_fingerprint(
        self._tasks, self._buckets, batch_size, seed)
    self._step = 0

  @property
  def bucket_lengths(self) -> tuple[int, ...]:
    """The lengths of inputs that batches come in, rising."""
    return self._buckets

  def __iter__(self) -> "TrainBatches":
    return self

  def __next__(self) -> Batch:
    batch = self[self._step]
    self._step += 1
    return batch

  def __getitem__(self, step: int) -> Batch:
    """Batch number `step`, this process' rows; the position stays."""
    bucket, rows = self._plan[step]
    rows = rows[self._rows]
    found = [(self._tasks[task][0], int(row)) for task, row in rows]
    length = self._lengths["targets"]
    batch = self._encoding.padded(
        [examples.ids("inputs", row) for examples, row in found],
        [examples.ids("targets", row) for examples, row in found],
        int(bucket), length)
    labels = valid_labels.batch_features(
        found, length, max(len(one.labels) for one, _ in self._tasks))
    return batch | _of_instances(found, self._encoder_length) | labels

  def get_state(self) -> dict[str, Any]:
    """The position, to keep in a checkpoint as JSON."""
    return {"step": self._step, "order": self._fingerprint}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on at a position, at once however far it is.

    Warns when the examples, the seed or the sizes are others than those the
    position was taken with: the run goes on, but in another order.
    """
    if state["order"] != self._fingerprint:
      warnings.warn(
          "the examples, the seed, the batch size or the buckets have changed "
          f"since step {state['step']}: the order of examples from here on is "
          "another than an unbroken run would have had", stacklevel=2)
    self._step = int(state["step"])


class EvalBatch(NamedTuple):
  """A batch of evaluation.

  Attributes:
    features: of the encoding's `names`, those of an instance encoder and of
      `valid_labels` where there are any; this process' rows.
    indices: [B] the examples in the rows of the whole batch.
    is_real: [B] False in rows that only fill the last batch; such a row
      repeats the last example with loss weights 0.
  """

  features: Batch
  indices: np.ndarray
  is_real: np.ndarray


def eval_batches(
    examples: token_ids.Examples,
    batch_size: int,
    lengths: Lengths,
    num_batches: int | None = None,
    bucket_lengths: Sequence[int] | str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    encoding: features.Encoding = features.EncoderDecoder(),
    target: Sequence[int] | None = None,
) -> Iterator[EvalBatch]:
  """All examples once, in order, in batches of one size.

  Args:
    examples: of one task.
    batch_size: B, over all processes.
    lengths: of the padded "inputs" and "targets".
    num_batches: at most so many; None for all.
    bucket_lengths: as in `TrainBatches`; a batch is padded to the shortest
      length that holds its longest inputs.
    process_index: as in `TrainBatches`.
    process_count: as in `TrainBatches`.
    encoding: as in `TrainBatches`.
    target: ids in the place of every example's targets; None: their own.

  Returns:
    An iterator of batches; what is wrong with the arguments is raised at once.
  """
  rows = process_rows(batch_size, process_index, process_count)
  buckets = _bucket_lengths(bucket_lengths, [examples], lengths["inputs"])
  starts = range(0, len(examples), batch_size)
  if num_batches is not None:
    starts = starts[:num_batches]
  return (
      _eval_batch(examples, start, batch_size, buckets, lengths["targets"],
                  rows, encoding, target)
      for start in starts)


def _eval_batch(
    examples, start, batch_size, buckets, targets_length, rows, encoding,
    target,
) -> EvalBatch:
  wanted = np.arange(start, start + batch_size)
  is_real = wanted < len(examples)
  indices = np.minimum(wanted, len(examples) - 1)
  longest = int(examples.lengths("inputs")[indices].max())
  batch = encoding.padded(
      [examples.ids("inputs", i) for i in indices[rows]],
      [examples.ids("targets", i) if target is None else target
       for i in indices[rows]],
      buckets[int(np.searchsorted(buckets, longest))], targets_length)
  batch["decoder_loss_weights"] *= is_real[rows, None]
  found = [(examples, i) for i in indices[rows]]
  batch |= _of_instances(found, _encoder_length([examples]))
  batch |= valid_labels.batch_features(
      found, targets_length, len(examples.labels))
  return EvalBatch(batch, indices, is_real)


def _of_instances(
    found: Sequence[tuple[token_ids.Examples, int]], length: int
) -> Batch:
  """What another network says, or is to say, of B examples.

  Returns:
    `instance_encodings` [B, E], or `instance_tokens` and `instance_mask`
    [B, length] if it is trained; nothing if there is no such network.
  """
  batch = {}
  if found and found[0][0].encodings is not None:
    batch["instance_encodings"] = np.stack(
        [examples.encodings[row] for examples, row in found])
  if length:
    batch["instance_tokens"] = np.zeros((len(found), length), np.int32)
    batch["instance_mask"] = np.zeros((len(found), length), bool)
    for i, (examples, row) in enumerate(found):
      ids, mask = examples.encoder_ids
      batch["instance_tokens"][i, :ids.shape[1]] = ids[row]
      batch["instance_mask"][i, :ids.shape[1]] = mask[row]
  return batch


def _encoder_length(examples: Sequence[token_ids.Examples]) -> int:
  """S, the same in all batches; 0 without an encoder that is trained."""
  return max([one.encoder_ids[0].shape[1] for one in examples
              if one.encoder_ids is not None], default=0)


def process_rows(
    batch_size: int, process_index: int, process_count: int) -> slice:
  """The rows of a batch that a process holds.

  Raises:
    UserError: the processes cannot have equally many.
  """
  if batch_size < 1 or batch_size % process_count:
    raise errors.UserError(
        f"BATCH_SIZE={batch_size} cannot be shared by {process_count} "
        f"processes; make it a positive multiple of {process_count}")
  share = batch_size // process_count
  return slice(process_index * share, (process_index + 1) * share)


def auto_buckets(lengths: np.ndarray, longest: int) -> tuple[int, ...]:
  """Up to 4 lengths, multiples of 16, that leave the least padding.

  Multiples keep the number of shapes apart from the data's accidents, so that
  a slightly different dataset finds its steps compiled.

  Args:
    lengths: [N] of the inputs.
    longest: no length is greater; it need not be a multiple.

  Returns:
    Rising lengths, the last of which holds the longest inputs.
  """
  steps = np.ceil(np.asarray(lengths) / _AUTO_MULTIPLE).astype(int)
  counts = np.bincount(np.maximum(steps, 1))
  last = len(counts) - 1
  below = np.cumsum(counts)  # below[s]: inputs of at most s multiples
  # best[s]: least padded size of all inputs of at most s multiples with the
  # buckets so far, the longest of which is s; and those buckets.
  best = {s: (int(below[s]) * s, (s,)) for s in range(1, last + 1)}
  for _ in range(_AUTO_BUCKETS - 1):
    best = {
        s: min([best[s]] + [
            (best[t][0] + int(below[s] - below[t]) * s, (*best[t][1], s))
            for t in range(1, s)], key=lambda found: (found[0], len(found[1])))
        for s in best}
  return tuple(min(s * _AUTO_MULTIPLE, longest) for s in best[last][1])


def _bucket_lengths(
    wanted: Sequence[int] | str | None,
    examples: Sequence[token_ids.Examples],
    longest: int,
) -> tuple[int, ...]:
  """Rising lengths of inputs; the last one holds every example."""
  if wanted is None:
    return (longest,)
  if isinstance(wanted, str):
    if wanted != "auto":
      raise errors.UserError(
          f"bucket_lengths={wanted!r} is neither 'auto' nor a list of lengths")
    return auto_buckets(
        np.concatenate([one.lengths("inputs") for one in examples]), longest)
  if any(int(length) != length or length < 1 for length in wanted):
    raise errors.UserError(
        f"bucket_lengths={list(wanted)} must be positive whole numbers")
  return (*sorted({int(n) for n in wanted if n < longest}), longest)


def _positive_rates(examples) -> list[tuple[token_ids.Examples, float]]:
  if isinstance(examples, token_ids.Examples):
    return [(examples, 1.0)]
  found = [(one, float(rate)) for one, rate in examples if rate > 0]
  if not found:
    raise errors.UserError(
        "no task of the mixture has a rate above 0; give the rate of at least "
        "one")
  return found


def _order_fingerprint(tasks, buckets, batch_size, seed) -> str:
  facts = [(one.fingerprint, rate) for one, rate in tasks]
  text = repr((facts, tuple(map(int, buckets)), batch_size, seed))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(tasks, members_of_buckets, batch_size, seed):
  """A grain dataset: step -> (bucket's length, [B, 2] task and row)."""
  import grain

  parts, weights = [], []
  for length, members in members_of_buckets:
    shares = [rate * len(rows) / len(tasks[task][0])
              for task, rate, rows in members]
    shuffled = [
        _shuffled(task, rows, _derived_seed(seed, task, length))
        for task, _, rows in members]
    mixed = grain.MapDataset.mix(shuffled, shares)
    batched = mixed.batch(batch_size, batch_fn=np.stack)
    parts.append(batched.map(lambda rows, length=length: (length, rows)))
    weights.append(sum(shares))
  return grain.MapDataset.mix(parts, weights)


def _members(tasks, buckets, batch_size):
  """Each bucket's (task, rate, rows); too small ones go to the next longer.

  A bucket with fewer examples than a batch would repeat examples within its
  batches, so it is joined to the next longer one; the longest to the one
  before it.
  """
  places = [np.searchsorted(buckets, examples.lengths("inputs"))
            for examples, _ in tasks]
  kept = []
  for place, length in enumerate(buckets):
    members = [(task, rate, np.flatnonzero(places[task] == place))
               for task, (_, rate) in enumerate(tasks)]
    if not _size(members):
      continue
    if kept and _size(kept[-1][1]) < batch_size:
      members = _joined(kept.pop()[1], members)
    kept.append((length, members))
  if len(kept) > 1 and _size(kept[-1][1]) < batch_size:
    length, members = kept.pop()
    kept[-1] = (length, _joined(kept[-1][1], members))
  return [(length, [member for member in members if len(member[2])])
          for length, members in kept]


def _size(members) -> int:
  return sum(len(rows) for _, _, rows in members)


def _joined(one, other):
  return [(task, rate, np.concatenate([rows, more]))
          for (task, rate, rows), (_, _, more) in zip(one, other)]


def _shuffled(task: int, rows: np.ndarray, seed: int):
  """An endless dataset of [task, row], each epoch in another order."""
  import grain

  pairs = np.stack([np.full_like(rows, task), rows], axis=1)
  return grain.MapDataset.source(pairs).shuffle(seed).repeat()


def _derived_seed(seed: int, task: int, length: int) -> int:
  """Unrelated to its neighbours' seeds: grain adds the epoch to a seed."""
  text = f"{seed} {task} {length}"
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
