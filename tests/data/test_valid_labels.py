"""Labels of a task as ids, in batches and in the features of the original.

Oracle of the features: the original's feature converter, whose arrays [B, C, T]
are these (it repeats the inputs C times), written out by hand.
"""

import dataclasses

import numpy as np
import pytest

from prompt_tuning import errors, pretrained
from prompt_tuning.data import batches, features, tasks, valid_labels

LENGTHS = {"inputs": 8, "targets": 6}
ROWS = [{"inputs": "is it so", "targets": text}
        for text in ("not equivalent", "equivalent", "equivalent")]


def task(labels=("not equivalent", "equivalent"), rows=ROWS, name="pair"):
  return tasks.Task(
      name, lambda split: iter(rows), ("train",), label_texts=labels)


def examples(of, vocabulary):
  found = features.tokenize(of, "train", vocabulary, vocabulary, LENGTHS)
  return dataclasses.replace(
      found, labels=valid_labels.ids_of(of, vocabulary, LENGTHS))


@pytest.fixture(scope="module")
def vocabulary():
  return pretrained.vocabulary()


def test_batches_have_every_label(vocabulary):
  first, second = (
      [*vocabulary.encode(text), 1] for text in task().label_texts)
  assert len(first) != len(second)
  tokens = np.zeros((2, 6), np.int32)
  tokens[0, :len(first)], tokens[1, :len(second)] = first, second
  found = next(batches.eval_batches(
      examples(task(), vocabulary), 4, LENGTHS)).features
  np.testing.assert_array_equal(
      found["label_tokens"], np.broadcast_to(tokens, (4, 2, 6)))
  np.testing.assert_array_equal(
      found["label_weights"], found["label_tokens"] != 0)
  np.testing.assert_array_equal(found["label_index"], [0, 1, 1, 1])
  np.testing.assert_array_equal(  # the right one is the target
      found["label_tokens"][[0, 1, 2], [0, 1, 1]],
      found["decoder_target_tokens"][:3])
  assert not found["decoder_loss_weights"][3].any()


def test_a_mixture_has_room_for_the_most_labels(vocabulary):
  three = task(("a", "b", "c"), [{"inputs": "x", "targets": "c"}], "three")
  stream = batches.TrainBatches(
      [(examples(one, vocabulary), 1.0) for one in (task(), three)], 8, 0,
      LENGTHS)
  batch = next(stream)
  assert batch["label_tokens"].shape == (8, 3, 6)
  is_three = batch["label_index"] == 2
  assert 0 < is_three.sum() < 8
  np.testing.assert_array_equal(
      batch["label_weights"].any(axis=-1).sum(axis=1),
      np.where(is_three, 3, 2))


def test_other_models_have_no_such_arrays(vocabulary):
  plain = features.tokenize(task(), "train", vocabulary, vocabulary, LENGTHS)
  found = next(batches.eval_batches(plain, 2, LENGTHS)).features
  assert set(found) == set(features.EncoderDecoder.names)


@pytest.mark.parametrize("labels, words", [
    (None, "pair does not say.*RANK_LABELS"),
    (("a", "a"), "the same tokens: 'a', 'a'"),
    (("a", "a very long label indeed, it is"), r"\['targets'\] is 6; raise")])
def test_labels_that_do_not_work(vocabulary, labels, words):
  with pytest.raises(errors.UserError, match=words):
    valid_labels.ids_of(task(labels), vocabulary, LENGTHS)


def test_a_target_that_is_no_label(vocabulary):
  found = examples(task(("equivalent", "other")), vocabulary)
  with pytest.raises(errors.UserError, match="example 0 .*'not equivalent'"):
    valid_labels.check_targets(found)
