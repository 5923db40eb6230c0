"""Averages between lines of the log and between evaluations, by hand."""

import json
import math

import pytest

from prompt_tuning.train import meter


class Log:
  """Takes what a reporter would log."""

  def __init__(self):
    self.lines, self.notes = [], []

  def train(self, step, metrics):
    self.lines.append((step, metrics["loss"]))

  def note(self, sentence):
    self.notes.append(sentence)


def sums(loss, tokens=2.0, is_finite=True, **more):
  return {"loss": loss, "z_loss": 0.0, "correct": 1.0, "tokens": tokens,
          "gradient_norm": 3.0, "is_finite": is_finite} | more


def test_averages_are_over_tokens():
  averages = meter.Averages()
  assert averages.take() == {}
  metrics = sums(6.0, 4.0, z_loss=2.0)
  del metrics["is_finite"]
  averages.add(metrics)
  averages.add(metrics | {"loss": 2.0, "tokens": 1.0})
  assert averages.take() == {
      "loss": pytest.approx(8 / 5), "z_loss": pytest.approx(4 / 5),
      "perplexity": pytest.approx(math.exp((8 - 4) / 5)),
      "token_accuracy": pytest.approx(100 * 2 / 5), "gradient_norm": 3.0}
  assert averages.take() == {}
  # A loss without it is no cross-entropy, such as the perceptron's.
  del metrics["z_loss"]
  averages.add(metrics)
  assert averages.take() == {
      "loss": 1.5, "token_accuracy": 25.0, "gradient_norm": 3.0}


def test_an_evaluation_sees_all_steps_since_the_last_one():
  log = Log()
  one = meter.Meter(log, 2)
  for step in range(1, 6):
    one.add(step, sums(2.0 * step))
  found = one.flush()
  assert log.lines == [(2, 1.5), (4, 3.5), (5, 5.0)]
  assert found["loss"] == pytest.approx(3.0)
  assert found["perplexity"] == pytest.approx(math.exp(3.0))
  one.add(6, sums(8.0))
  assert one.flush()["loss"] == pytest.approx(4.0)
  assert one.flush() == {}


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_that_goes_on_logs_the_same(stop):
  whole, parts = Log(), Log()
  unbroken = meter.Meter(whole, 4)
  for step in range(1, 8):
    unbroken.add(step, sums(step))
  first = meter.Meter(parts, 4)
  for step in range(1, stop + 1):
    first.add(step, sums(step))
  second = meter.Meter(parts, 4, json.loads(json.dumps(first.unlogged())))
  for step in range(stop + 1, 8):
    second.add(step, sums(step))
  assert unbroken.flush() == second.flush()
  assert whole.lines == parts.lines


def test_bad_steps_are_counted_and_left_out():
  log = Log()
  one = meter.Meter(log, 10)
  bad = [one.add(step, sums(math.nan if step in (2, 3) else 4.0,
                            is_finite=step not in (2, 3)))
         for step in range(1, 6)]
  assert bad == [0, 0, 1, 2, 0]
  assert one.flush()["loss"] == 2.0
  assert ["Step 2 was" in log.notes[0], "Step 3 was" in log.notes[1]] == [
      True, True]
