"""Writes tests/expectations/adafactor.npz by running T5X's own Adafactor.

Run it from the repository root, where `t5x` can be imported (it is not on
PyPI; clone its repository): `python tests/make_adafactor_expectations.py`.
Only samples of the parameters are kept: they are compared after 1, 10 and 100
steps of the runs in `RUNS`, on parameters and gradients that `parameters` and
`gradients` draw again in the test.
"""

import pathlib

import numpy as np

SHAPES = {"factored": (130, 140), "unfactored": (100, 16), "vector": (7,)}
STEPS = (1, 10, 100)

# Each run: arguments of both implementations, and the step it starts from.
RUNS = {
    "defaults": ({}, 0),
    # The prompt-tuning configuration, on top of a pretrained checkpoint.
    "prompt": (
        {"multiply_by_parameter_scale": False, "weight_decay_rate": 1e-5},
        1_100_000),
    "reset": ({"step_offset": 1_100_000, "weight_decay_rate": 1e-3}, 1_100_000),
    "momentum": (
        {"beta1": 0.9, "clipping_threshold": None, "decay_rate": 0.7}, 0),
    "never_factored": ({"factored": False, "clipping_threshold": 0.5}, 0),
}


def learning_rate(step, start):
  """0.3, falling linearly to 0.1 over 100 steps (exact in every library)."""
  return 0.3 - 0.002 * (step - start)


def parameters():
  """Parameters of very different sizes. RandomState's stream never changes."""
  random = np.random.RandomState(0)
  return {
      name: (scale * random.randn(*shape)).astype(np.float32)
      for (name, shape), scale in zip(SHAPES.items(), (1.0, 0.1, 1e-4))}


def gradients(steps):
  """`steps` gradients, each row of its own size, some of them steep."""
  random = np.random.RandomState(1)
  for step in range(steps):
    yield {
        name: (
            (10.0 if step % 7 == 3 else 1.0) * random.randn(*shape)
            * 10.0 ** -np.linspace(0, 4, shape[0]).reshape(
                (-1,) + (1,) * (len(shape) - 1))
        ).astype(np.float32)
        for name, shape in SHAPES.items()}


def sample(array):
  """The part of a parameter that is kept: every 16th row of a matrix."""
  return np.asarray(array) if array.ndim < 2 else np.asarray(array)[::16]


def run_t5x(arguments, start):
  """Yields (step, parameters) of T5X's Adafactor at each of `STEPS`."""
  import jax
  from t5x import adafactor, optimizers

  definition = adafactor.Adafactor(**arguments)
  values = parameters()
  state = optimizers.OptimizerState(
      np.int32(start), definition.init_state(values).param_states)

  @jax.jit
  def update(rate, values, state, gradient):
    return definition.apply_gradient(
        definition.hyper_params.replace(learning_rate=rate), values, state,
        gradient)

  for step, gradient in enumerate(gradients(max(STEPS)), start=1):
    rate = np.float32(learning_rate(start + step - 1, start))
    values, state = update(rate, values, state, gradient)
    if step in STEPS:
      yield step, values


def main():
  expected = {
      f"{run}/{step}/{name}": sample(value)
      for run, (arguments, start) in RUNS.items()
      for step, values in run_t5x(arguments, start)
      for name, value in values.items()}
  path = pathlib.Path(__file__).parent / "expectations" / "adafactor.npz"
  np.savez_compressed(path, **expected)
  print(f"{path}: {len(expected)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
