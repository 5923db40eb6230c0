"""Schedules against closed forms, T5X and Hugging Face."""

import math

import jax
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train.schedules import (
  FACTORS,
  create_learning_rate_scheduler,
  linear_decay,
  warmed_up,
)

STEPS = (0, 1, 5, 9, 10, 11, 25, 40, 99, 100, 1000)


@pytest.mark.parametrize("factors, formula", [
    ("constant", lambda s: 0.3),
    ("constant*linear_warmup", lambda s: 0.3 * min(1, s / 10)),
    ("linear_decay", lambda s: max(
        1e-8, 0.3 * min(s / 10, 1 + 0.01 * (10 - s)))),
    ("rsqrt_decay", lambda s: 1 / math.sqrt(max(s, 10))),
    ("constant * rsqrt_normalized_decay",
     lambda s: 0.3 * math.sqrt(10 / max(s, 10))),
    ("constant * decay_every", lambda s: max(1e-8, 0.3 * 0.01 ** (s // 20))),
    ("cosine_decay",
     lambda s: (1 + math.cos(math.pi * (max(0, s - 10) / 200 % 1))) / 2),
    ("constant * linear_warmup * rsqrt_decay",
     lambda s: max(1e-8, 0.3 * min(1, s / 10) / math.sqrt(max(s, 10)))),
])
def test_factors_are_their_closed_forms(factors, formula):
  schedule = create_learning_rate_scheduler(
      factors, 0.3, warmup_steps=10, decay_factor=0.01, steps_per_decay=20,
      steps_per_cycle=200)
  expected = [max(1e-8, formula(step)) for step in STEPS]
  np.testing.assert_allclose(
      [schedule(step) for step in STEPS], expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("factors", [
    *FACTORS, "constant * linear_warmup * rsqrt_decay"])
def test_factors_are_those_of_t5x(factors):
  pytest.importorskip("t5x")
  from t5x import utils
  arguments = dict(
      factors=factors, base_learning_rate=0.3, warmup_steps=10,
      decay_factor=0.01, steps_per_decay=20, steps_per_cycle=200,
      step_offset=1_100_000, min_learning_rate=1e-5)
  ours = create_learning_rate_scheduler(**arguments)
  theirs = utils.create_learning_rate_scheduler(**arguments)
  for step in STEPS:
    step = np.int32(step + 1_100_000)
    np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-6)


def test_steps_count_from_the_offset():
  schedule = create_learning_rate_scheduler(
      "constant * linear_warmup", 1.0, warmup_steps=10, step_offset=1_100_000)
  assert float(schedule(1_100_005)) == 0.5
  assert float(schedule(3)) == float(np.float32(1e-8))


@pytest.mark.parametrize("factors", FACTORS)
def test_no_warmup_is_finite(factors):
  schedule = create_learning_rate_scheduler(factors, 0.3, warmup_steps=0)
  assert np.isfinite([schedule(step) for step in (0, 1, 100)]).all()


def test_linear_decay_is_its_closed_form():
  schedule = linear_decay(2.0, total_steps=10, warmup_steps=4, step_offset=100)
  rates = [schedule(100 + step) for step in (0, 1, 4, 7, 10, 12)]
  np.testing.assert_allclose(rates, [0, 0.5, 2, 1, 0, 0])
  share = linear_decay(2.0, 10, warmup_steps=0.4, step_offset=100)
  assert [share(100 + step) for step in (0, 1, 4, 7, 10, 12)] == rates


@pytest.mark.parity
@pytest.mark.parametrize("warmup", [0, 4, 10])
def test_linear_decay_is_hugging_faces(warmup):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
  theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, 10)
  ours = linear_decay(0.3, 10, warmup)
  for step in range(12):
    np.testing.assert_allclose(
        ours(step), theirs.get_last_lr()[0], rtol=1e-6, atol=1e-9)
    optimizer.step()
    theirs.step()


@pytest.mark.parity
@pytest.mark.parametrize("share, warmup", [(0.0, 0), (0.06, 1), (0.35, 4)])
def test_warmed_up_is_hugging_faces(share, warmup):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
  theirs = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
  ours = warmed_up(0.3, 10, share, step_offset=5)
  for step in range(1, 12):
    optimizer.step()
    theirs.step()
    np.testing.assert_allclose(
        ours(5 + step), theirs.get_last_lr()[0], rtol=1e-6)


@pytest.mark.parametrize("schedule", [
    create_learning_rate_scheduler(), linear_decay(1.0, 10),
    warmed_up(1.0, 10, 0.5)])
def test_schedules_run_under_jit_in_float32(schedule):
  rate = jax.jit(schedule)(np.int32(3))
  assert rate.dtype == np.float32 and rate.shape == ()
  np.testing.assert_allclose(rate, schedule(3), rtol=1e-6)


@pytest.mark.parametrize("make, sentence", [
    (lambda: create_learning_rate_scheduler("constant * warmup"),
     "'warmup'.*linear_warmup"),
    (lambda: create_learning_rate_scheduler(steps_per_decay=0),
     "steps_per_decay = 0"),
    (lambda: warmed_up(1.0, 10, 6), "warmup_share = 6 .*0 and 1"),
    (lambda: linear_decay(1.0, 10, 11), "warmup_steps = 11.*total_steps = 10"),
])
def test_mistakes_are_named(make, sentence):
  with pytest.raises(UserError, match=sentence):
    make()
