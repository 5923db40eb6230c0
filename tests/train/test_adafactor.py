"""Adafactor against T5X's outputs, and against the published formulas."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train.adafactor import (
  Adafactor,
  counting_from,
  factored_dimensions,
)


@pytest.fixture(scope="module")
def maker(expectations):
  """The script that wrote the expectations: same parameters and gradients."""
  path = expectations.parent / "make_adafactor_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def train(optimizer, parameters, gradients):
  """Yields the parameters after each gradient."""
  state = optimizer.init(parameters)

  @jax.jit
  def step(parameters, state, gradient):
    updates, state = optimizer.update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state

  for gradient in gradients:
    parameters, state = step(parameters, state, gradient)
    yield parameters


def relative_error(actual, expected):
  """Norm of the error over the norm of what is expected."""
  difference = np.asarray(actual, np.float64) - expected
  return np.linalg.norm(difference) / np.linalg.norm(expected)


def published_formulas(parameters, gradients, start, rate, *, clip=1.0,
                       scaled=True, weight_decay=0.0, momentum=None,
                       decay_rate=0.8, offset=0):
  """Algorithms 4 and 5 of the paper in float64, and T5X's two additions.

  The additions are weight decay apart from the learning rate, and momentum of
  the finished step.
  """
  x = {name: value.astype(np.float64) for name, value in parameters.items()}
  memory = {name: [0.0, 0.0] for name in x}
  # The decay's distance to 1 is 1.5e-5 at a late step, a number that float32
  # arithmetic knows to 0.4 %; that precision is part of T5X's semantics.
  last = {name: 0.0 for name in x}
  for t, gradient in enumerate(gradients, start=start):
    decay = np.float64(np.float32(1) - np.float32(t - offset + 1) ** np.float32(
        -decay_rate))
    for name, value in x.items():
      g = gradient[name].astype(np.float64)
      squares = g ** 2 + 1e-30
      if min(squares.shape) >= 128:
        rows, columns = memory[name]
        rows = decay * rows + (1 - decay) * squares.sum(1)
        columns = decay * columns + (1 - decay) * squares.sum(0)
        memory[name] = rows, columns
        second = np.outer(rows, columns) / rows.sum()
      else:
        second = decay * memory[name][0] + (1 - decay) * squares
        memory[name] = second, None
      step = g / np.sqrt(second)
      if clip is not None:
        step /= max(1.0, np.sqrt(np.mean(step ** 2)) / clip)
      step *= rate(t)
      if scaled:
        step *= max(1e-3, np.sqrt(np.mean(value ** 2)))
      if momentum is not None:
        step = last[name] = momentum * last[name] + (1 - momentum) * step
      x[name] = np.float64(np.float32(1 - weight_decay)) * value - step
    yield dict(x)


@pytest.mark.parametrize(
    "run", ["defaults", "prompt", "reset", "momentum", "never_factored"])
def test_equals_t5x_after_1_10_and_100_steps(run, maker, expectations):
  arguments, start = maker.RUNS[run]
  optimizer = Adafactor(
      lambda step: maker.learning_rate(step, start),
      initial_step=start, **arguments)
  trained = train(optimizer, maker.parameters(), maker.gradients(100))
  with np.load(expectations / "adafactor.npz", allow_pickle=False) as expected:
    for step, parameters in enumerate(trained, start=1):
      if step not in maker.STEPS:
        continue
      for name, value in parameters.items():
        value = maker.sample(value)
        assert relative_error(value, expected[f"{run}/{step}/{name}"]) <= 1e-6


@pytest.mark.parametrize("start, arguments, formula", [
    (0, {}, {}),
    (0, {"beta1": 0.9, "decay_rate": 0.7, "clipping_threshold": None},
     {"momentum": 0.9, "decay_rate": 0.7, "clip": None}),
    (1_100_000,
     {"multiply_by_parameter_scale": False, "weight_decay_rate": 1e-5},
     {"scaled": False, "weight_decay": 1e-5}),
    (1_100_000, {"step_offset": 1_100_000, "weight_decay_rate": 1e-3},
     {"offset": 1_100_000, "weight_decay": 1e-3}),
])
def test_equals_the_published_formulas(start, arguments, formula, maker):
  def rate(step):
    return maker.learning_rate(step, start)

  optimizer = Adafactor(rate, initial_step=start, **arguments)
  trained = train(optimizer, maker.parameters(), maker.gradients(100))
  expected = published_formulas(
      maker.parameters(), maker.gradients(100), start, rate, **formula)
  for actual, wanted in zip(trained, expected, strict=True):
    for name, value in actual.items():
      assert relative_error(value, wanted[name]) <= 1e-6


@pytest.mark.parity
@pytest.mark.parametrize("run", ["defaults", "prompt"])
def test_committed_expectations_are_what_t5x_gives(run, maker, expectations):
  pytest.importorskip("t5x")
  with np.load(expectations / "adafactor.npz", allow_pickle=False) as expected:
    for step, parameters in maker.run_t5x(*maker.RUNS[run]):
      for name, value in parameters.items():
        value = maker.sample(value)
        assert relative_error(value, expected[f"{run}/{step}/{name}"]) <= 1e-7


def test_late_steps_move_a_prompt_by_the_learning_rate():
  # Measured on the original: with the step count of the checkpoint, clipping
  # is always active, so each step has RMS 0.3 whatever the gradients' size.
  prompt = {"prompt": jnp.zeros((100, 16))}
  random = np.random.RandomState(0)
  gradients = ({"prompt": jnp.asarray(1e-4 * random.randn(100, 16))}
               for _ in range(20))
  optimizer = Adafactor(
      0.3, multiply_by_parameter_scale=False, initial_step=1_100_000)
  before = prompt["prompt"]
  for after in train(optimizer, prompt, gradients):
    step = np.sqrt(np.mean(np.square(after["prompt"] - before)))
    np.testing.assert_allclose(step, 0.3, rtol=1e-5)
    before = after["prompt"]


@pytest.mark.parametrize("shape, stacked, expected", [
    ((150, 512), (), (0, 1)),
    ((512, 150), (), (1, 0)),
    ((128, 128), (), (0, 1)),
    ((100, 512), (), None),  # A prompt of the usual length.
    ((512,), (), None),
    ((), (), None),
    ((24, 512, 2048), (0,), (1, 2)),
    ((2048, 24, 512), (1,), (2, 0)),
    ((24, 512), (0,), None),
])
def test_factored_dimensions(shape, stacked, expected):
  assert factored_dimensions(shape, 128, stacked) == expected


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_are_trained_as_if_alone(axis):
  random = np.random.RandomState(0)
  kernels = [(s * random.randn(6, 8)).astype(np.float32) for s in (0.01, 3)]
  gradients = [(s * random.randn(3, 6, 8)).astype(np.float32) for s in (5, 1)]
  arguments = {"min_dim_size_to_factor": 4, "beta1": 0.9}
  names = ["embed", "mlp"]
  names.insert(axis, "layers")
  stacked = Adafactor(0.1, logical_axes={"kernel": tuple(names)}, **arguments)
  *_, together = train(
      stacked, {"kernel": np.stack(kernels, axis)},
      [{"kernel": np.stack(pair, axis)} for pair in zip(*gradients)])
  for i, kernel in enumerate(kernels):
    *_, alone = train(
        Adafactor(0.1, **arguments), {"kernel": kernel},
        [{"kernel": gradient} for gradient in gradients[i]])
    np.testing.assert_allclose(
        np.take(np.asarray(together["kernel"]), i, axis), alone["kernel"],
        rtol=1e-6)


def test_unnamed_axes_of_rank_3_are_refused_with_the_way_out():
  parameters = {"decoder": {"kernel": jnp.zeros((2, 3, 4))}}
  with pytest.raises(
      UserError, match=r"decoder/kernel \(2, 3, 4\).*logical_axes.*factored"):
    Adafactor(0.1).init(parameters)
  moments = Adafactor(0.1, factored=False).init(parameters).moments
  assert moments["decoder"]["kernel"]["v"].shape == (2, 3, 4)


def test_a_run_before_its_offset_has_no_memory():
  parameters = {"vector": jnp.ones(3)}
  *_, trained = train(
      Adafactor(0.5, step_offset=5, multiply_by_parameter_scale=False),
      parameters, [{"vector": jnp.full(3, 4.0)}, {"vector": jnp.full(3, 0.1)}])
  np.testing.assert_allclose(trained["vector"], np.zeros(3), atol=1e-6)


def test_only_adafactors_are_counted_from_a_step():
  parameters = {"vector": jnp.ones(3)}
  optimizer = optax.chain(optax.scale_by_adam(), Adafactor(0.5))
  adam, adafactor = counting_from(optimizer.init(parameters), 1_100_000)
  assert int(adam.count) == 0
  expected = Adafactor(0.5, initial_step=1_100_000).init(parameters)
  jax.tree.map(np.testing.assert_array_equal, adafactor, expected)


def test_update_without_parameters_is_refused():
  optimizer = Adafactor(0.1)
  parameters = {"prompt": jnp.zeros((2, 3))}
  with pytest.raises(ValueError, match="needs the parameters"):
    optimizer.update(parameters, optimizer.init(parameters))


def test_state_is_float32_and_small():
  parameters = {"kernel": jnp.zeros((128, 256), jnp.bfloat16),
                "prompt": jnp.zeros((100, 16), jnp.float32)}
  optimizer = Adafactor(0.1, initial_step=7)
  state = jax.eval_shape(optimizer.init, parameters)
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state.moments)
  assert shapes == {
      "kernel": {
          "v_row": ((128,), jnp.float32), "v_col": ((256,), jnp.float32)},
      "prompt": {"v": ((100, 16), jnp.float32)}}
  assert int(optimizer.init(parameters).count) == 7


def test_bfloat16_parameters_stay_bfloat16():
  parameters = {"kernel": jnp.ones((4, 4), jnp.bfloat16)}
  *_, trained = train(Adafactor(0.5), parameters, [parameters])
  assert trained["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(trained["kernel"], np.full((4, 4), 0.5))
