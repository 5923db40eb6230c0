"""Order, position, buckets and mixing of batches, by counting examples."""

import collections
import itertools
import json
import time

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import batches, features, tasks, vocabularies

LENGTHS = {"inputs": 64, "targets": 2}


def make_examples(lengths, first=10, name="mine"):
  """Example i has `lengths[i]` ids; its only target is first + i."""
  rows = [{"inputs": [9] * n, "targets": [first + i]}
          for i, n in enumerate(lengths)]
  task = tasks.Task(
      name, lambda split: iter(rows), ("train",), fingerprint=f"{name}{first}",
      without_eos=frozenset({"inputs", "targets"}))
  vocabulary = vocabularies.ByteVocabulary()
  return features.tokenize(task, "train", vocabulary, vocabulary, LENGTHS)


def seen(batch):
  return batch["decoder_target_tokens"][:, 0].tolist()


def take(stream, count):
  return [seen(batch) for batch in itertools.islice(stream, count)]


def same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


MIXED = make_examples([3, 20, 5, 40, 17, 16, 64, 33, 1, 8] * 10)


def test_each_epoch_has_every_example_once_in_another_order():
  stream = batches.TrainBatches(make_examples([4] * 30), 6, 0, LENGTHS)
  epochs = [sum(take(stream, 5), []) for _ in range(4)]
  assert all(sorted(epoch) == list(range(10, 40)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert epochs[0] != sorted(epochs[0])


def test_a_batch_may_cross_epochs():
  stream = batches.TrainBatches(make_examples([4] * 10), 4, 0, LENGTHS)
  counts = collections.Counter(sum(take(stream, 5), []))
  assert set(counts.values()) == {2}


def test_seeds_give_unrelated_orders():
  # Not only different: a seed's second epoch is not the next seed's first.
  examples = make_examples([4] * 30)
  orders = [
      tuple(sum(take(batches.TrainBatches(examples, 30, s, LENGTHS), 3), []))
      for s in (0, 1, 2)]
  epochs = {order[i:i + 30] for order in orders for i in (0, 30, 60)}
  assert len(epochs) == 9


def test_rows_are_the_examples():
  stream = batches.TrainBatches(MIXED, 8, 1, LENGTHS, [16, 32])
  for batch in itertools.islice(stream, 20):
    lengths = (batch["encoder_input_tokens"] != 0).sum(axis=1)
    wanted = MIXED.lengths("inputs")[np.array(seen(batch)) - 10]
    assert lengths.tolist() == wanted.tolist()


@pytest.mark.parametrize("buckets", [None, [16, 32], "auto"])
def test_a_restored_position_gives_the_same_batches(buckets):
  unbroken = batches.TrainBatches(MIXED, 8, 3, LENGTHS, buckets)
  for stop in (0, 1, 7, 50):
    first = batches.TrainBatches(MIXED, 8, 3, LENGTHS, buckets)
    for _ in range(stop):
      next(first)
    resumed = batches.TrainBatches(MIXED, 8, 3, LENGTHS, buckets)
    resumed.set_state(json.loads(json.dumps(first.get_state())))
    for step in range(stop, stop + 20):
      batch = next(resumed)
      same(batch, unbroken[step])
      same(batch, next(first))


def test_restoring_is_immediate_however_far():
  stream = batches.TrainBatches(MIXED, 8, 3, LENGTHS, [16, 32])
  started = time.perf_counter()
  stream.set_state(stream.get_state() | {"step": 10**9})
  next(stream)
  assert time.perf_counter() - started < 1.0  # replaying would take weeks
  assert stream.get_state()["step"] == 10**9 + 1


@pytest.mark.parametrize("change", [
    {"seed": 4}, {"batch_size": 4}, {"bucket_lengths": [16]},
    {"examples": make_examples([3] * 20, name="other")},
    {"examples": [(MIXED, 2.0)]},
])
def test_a_position_of_another_order_is_warned_of(change):
  plain = {"examples": MIXED, "batch_size": 8, "seed": 3, "lengths": LENGTHS}
  state = batches.TrainBatches(**plain).get_state()
  with pytest.warns(UserWarning, match="have changed"):
    batches.TrainBatches(**(plain | change)).set_state(state)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(count):
  whole = batches.TrainBatches(MIXED, 8, 0, LENGTHS, [16, 32])
  parts = [batches.TrainBatches(MIXED, 8, 0, LENGTHS, [16, 32], i, count)
           for i in range(count)]
  for _ in range(12):
    rows = [next(part) for part in parts]
    together = {name: np.concatenate([row[name] for row in rows])
                for name in rows[0]}
    same(together, next(whole))


def test_buckets_pad_no_further_than_needed_and_keep_proportions():
  stream = batches.TrainBatches(MIXED, 8, 0, LENGTHS, [16, 32])
  assert stream.bucket_lengths == (16, 32, 64)
  counts, epoch = collections.Counter(), []
  for batch in itertools.islice(stream, 125):  # 1,000 rows: ten epochs
    length = batch["encoder_input_tokens"].shape[1]
    counts[length] += 1
    epoch += seen(batch)
    used = (batch["encoder_input_tokens"] != 0).sum(axis=1)
    low = {16: 0, 32: 16, 64: 32}[length]
    assert ((low < used) & (used <= length)).all()
  # 50 of 100 examples have at most 16 ids, 20 at most 32, 30 more.
  assert counts[16] == pytest.approx(62.5, abs=1)
  assert counts[32] == pytest.approx(25, abs=1)
  assert counts[64] == pytest.approx(37.5, abs=1)
  times = collections.Counter(epoch)
  assert len(times) == 100
  assert set(times.values()) <= {9, 10, 11}


def test_small_buckets_join_the_next_longer():
  lengths = [4] * 3 + [20] * 35 + [60] * 2
  stream = batches.TrainBatches(
      make_examples(lengths), 8, 0, LENGTHS, [16, 32])
  shapes = set()
  for batch in itertools.islice(stream, 20):
    shapes.add(batch["encoder_input_tokens"].shape)
    assert len(set(seen(batch))) == 8
  # The two longest have no longer bucket to go to: the one before joins them.
  assert shapes == {(8, 64)}
  assert stream.bucket_lengths == (64,)


def test_empty_buckets_are_left_out():
  examples = make_examples([4] * 20 + [30] * 20)
  stream = batches.TrainBatches(examples, 8, 0, LENGTHS, [8, 16, 32, 48])
  assert stream.bucket_lengths == (8, 32)


def test_fewer_examples_than_a_batch():
  stream = batches.TrainBatches(
      make_examples([4, 20, 60]), 8, 0, LENGTHS, [16, 32])
  counts = collections.Counter(sum(take(stream, 3), []))
  assert set(counts.values()) == {8}


def test_one_example():
  stream = batches.TrainBatches(make_examples([4]), 2, 0, LENGTHS)
  assert take(stream, 2) == [[10, 10], [10, 10]]


def test_mixtures_follow_their_rates_within_every_batch():
  first = make_examples([4] * 50)
  second = make_examples([4, 40] * 20, first=100, name="second")
  never = make_examples([4] * 9, first=200, name="never")
  stream = batches.TrainBatches(
      [(first, 3.0), (second, 1.0), (never, 0.0)], 8, 0, LENGTHS, [16])
  counts, shorts = collections.Counter(), []
  for batch in itertools.islice(stream, 400):
    names = ["first" if row < 100 else "second" if row < 200 else "never"
             for row in seen(batch)]
    counts.update(names)
    if batch["encoder_input_tokens"].shape[1] == 16:
      shorts.append(names.count("second"))
  assert counts["second"] / 3200 == pytest.approx(0.25, abs=0.005)
  assert counts["never"] == 0
  # One in seven short ones is of the second task: 1 or 2 in a batch of 8.
  assert set(shorts) == {1, 2}


def test_auto_buckets_leave_the_least_padding():
  # The oracle tries every set of at most 4 multiples of 16.
  lengths = np.random.default_rng(0).geometric(0.03, 500).clip(1, 120)
  found = batches.auto_buckets(lengths, 128)
  multiples = range(16, 129, 16)
  choices = (
      choice for k in (1, 2, 3, 4)
      for choice in itertools.combinations(multiples, k)
      if choice[-1] >= lengths.max())
  sizes = {c: np.array(c)[np.searchsorted(c, lengths)].sum() for c in choices}
  assert sizes[found] == min(sizes.values())
  assert batches.auto_buckets(np.array([5, 5]), 128) == (16,)
  assert batches.auto_buckets(np.array([20, 20]), 20) == (20,)


def test_bad_settings():
  def make(**settings):
    return batches.TrainBatches(**({
        "examples": MIXED, "batch_size": 8, "seed": 0, "lengths": LENGTHS,
    } | settings))

  with pytest.raises(errors.UserError, match="BATCH_SIZE=8.*multiple of 3"):
    make(process_count=3)
  with pytest.raises(errors.UserError, match="neither 'auto' nor"):
    make(bucket_lengths="some")
  with pytest.raises(errors.UserError, match="positive whole"):
    make(bucket_lengths=[16, 0])
  with pytest.raises(errors.UserError, match="rate above 0"):
    make(examples=[(MIXED, 0.0)])
  with pytest.raises(errors.UserError, match="BATCH_SIZE=0"):
    batches.eval_batches(MIXED, 0, LENGTHS)


def test_evaluation_has_every_example_once_in_order():
  examples = make_examples([4] * 19)
  found = list(batches.eval_batches(examples, 8, LENGTHS))
  assert [batch.is_real.sum() for batch in found] == [8, 8, 3]
  real = np.concatenate([batch.indices[batch.is_real] for batch in found])
  assert real.tolist() == list(range(19))
  for batch in found:
    assert seen(batch.features) == (batch.indices + 10).tolist()
    assert batch.features["encoder_input_tokens"].shape == (8, 64)
    weights = batch.features["decoder_loss_weights"]
    assert weights[:, 0].tolist() == batch.is_real.astype(int).tolist()
  assert set(found[-1].indices[3:]) == {18}
  assert len(list(batches.eval_batches(examples, 8, LENGTHS, 2))) == 2


def test_evaluation_in_buckets_and_on_processes():
  whole = list(batches.eval_batches(
      MIXED, 4, LENGTHS, bucket_lengths=[16, 32]))
  for batch in whole:
    used = (batch.features["encoder_input_tokens"] != 0).sum(axis=1).max()
    length = batch.features["encoder_input_tokens"].shape[1]
    assert length == min(n for n in (16, 32, 64) if n >= used)
  parts = [batches.eval_batches(MIXED, 4, LENGTHS, None, [16, 32], i, 2)
           for i in (0, 1)]
  for one, first, second in zip(whole, *parts, strict=True):
    together = {name: np.concatenate([first.features[name],
                                      second.features[name]])
                for name in one.features}
    same(one.features, together)
    assert first.indices.tolist() == one.indices.tolist()


def test_batches_of_a_decoder():
  encoding = features.DecoderOnly()
  stream = batches.TrainBatches(
      MIXED, 8, 3, LENGTHS, [16, 32], encoding=encoding)
  plain = batches.TrainBatches(MIXED, 8, 3, LENGTHS, [16, 32])
  assert stream.get_state()["order"] == plain.get_state()["order"]
  widths = set()
  for batch, other in itertools.islice(zip(stream, plain), 20):
    assert seen(batch) == seen(other)
    inputs = other["encoder_input_tokens"]
    assert batch["decoder_input_tokens"].shape == (
        8, inputs.shape[1] + LENGTHS["targets"])
    np.testing.assert_array_equal(
        batch["decoder_target_positions"][:, 0] + 1, (inputs > 0).sum(axis=1))
    widths.add(inputs.shape[1])
  assert widths == {16, 32, 64}


def test_evaluation_of_a_decoder_fills_the_last_batch():
  found = list(batches.eval_batches(
      make_examples([4] * 5), 4, LENGTHS, encoding=features.DecoderOnly()))
  weights = found[1].features["decoder_loss_weights"].sum(axis=1)
  assert weights.tolist() == [1, 0, 0, 0]
  assert found[1].is_real.tolist() == [True, False, False, False]


def test_one_target_for_every_example():
  for encoding in (features.EncoderDecoder(), features.DecoderOnly()):
    (batch,) = batches.eval_batches(
        make_examples([4, 5, 6]), 4, LENGTHS, encoding=encoding,
        target=[70, 71])
    assert batch.features["decoder_target_tokens"].tolist() == [[70, 71]] * 4
    assert batch.features["decoder_loss_weights"].tolist() == [
        [1, 1], [1, 1], [1, 1], [0, 0]]
