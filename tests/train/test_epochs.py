"""Epochs in steps, against counted batches."""

import math

import pytest

from prompt_tuning import errors
from prompt_tuning.data import tasks
from prompt_tuning.train import epochs, settings


def task(count, name="mine"):
  rows = [{"inputs": "a", "targets": "b"}] * count
  return tasks.Task(name, lambda split: iter(rows), ("train",))


def dataset(found, batch_size=8, split="train"):
  return settings.DatasetConfig(
      found, {"inputs": 4, "targets": 2}, split=split, batch_size=batch_size)


@pytest.mark.parametrize("count, batch_size", [
    (50, 8), (48, 8), (49, 8), (1, 8), (9, 1)])
def test_as_many_batches_as_hold_all(count, batch_size):
  batches = len(range(0, count, batch_size))  # PEFT's: the last is smaller
  assert epochs.steps_an_epoch(count, batch_size) == batches
  assert epochs.steps(3, dataset(task(count), batch_size)) == 3 * batches


def test_the_tutorial_has_350_steps():
  assert epochs.steps(50, dataset(task(50))) == 350


def test_the_bases_steps_are_counted_too():
  assert epochs.steps(2, dataset(task(16)), 1_100_000) == 1_100_004


def test_tasks_of_a_mixture_count_if_they_are_trained_on():
  mixture = tasks.Mixture("both", (
      (task(10, "a"), 1.0), (task(7, "b"), 0.5), (task(99, "c"), 0.0)))
  assert epochs.steps(1, dataset(mixture)) == math.ceil(17 / 8)


def test_mistakes():
  with pytest.raises(errors.UserError, match="epochs.steps.epochs is 0"):
    epochs.steps(0, dataset(task(4)))
  with pytest.raises(errors.UserError, match="mine has no split 'test'"):
    epochs.steps(1, dataset(task(4), split="test"))
