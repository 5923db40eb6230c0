"""AdamW against its formula and torch; clipping against the norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train.optimizers import AdamW, clipped, grouped


def train(optimizer, value, gradients):
  state = optimizer.init(value)
  update = jax.jit(optimizer.update)
  for gradient in gradients:
    updates, state = update(gradient, state, value)
    value = optax.apply_updates(value, updates)
  return value


def problem():
  random = np.random.RandomState(0)
  return (random.randn(3, 4).astype(np.float32),
          random.randn(50, 3, 4).astype(np.float32))


def test_adamw_is_its_published_formula():
  value, gradients = problem()
  expected, m, v = value.astype(np.float64), 0.0, 0.0
  for t, g in enumerate(gradients.astype(np.float64), start=1):
    m = 0.8 * m + 0.2 * g
    v = 0.99 * v + 0.01 * g ** 2
    step = (m / (1 - 0.8 ** t)) / (np.sqrt(v / (1 - 0.99 ** t)) + 1e-6)
    expected = expected - 0.05 * (step + 0.1 * expected)
  trained = train(AdamW(0.05, 0.8, 0.99, 1e-6, 0.1), value, gradients)
  np.testing.assert_allclose(trained, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parity
def test_adamw_is_torchs_with_the_trainers_defaults():
  torch = pytest.importorskip("torch")
  value, gradients = problem()
  parameter = torch.nn.Parameter(torch.tensor(value))
  theirs = torch.optim.AdamW([parameter], lr=0.05, weight_decay=0.0)
  for gradient in gradients:
    parameter.grad = torch.tensor(gradient)
    theirs.step()
  trained = train(AdamW(0.05), value, gradients)
  np.testing.assert_allclose(
      trained, parameter.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_clipping_is_by_the_norm_of_all_parameters_together():
  gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
  optimizer = clipped(optax.sgd(1.0), max_norm=1.0)
  updates, _ = optimizer.update(gradients, optimizer.init(gradients))
  np.testing.assert_allclose(updates["a"], [-0.6, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [[-0.8]], rtol=1e-6)


def test_small_gradients_are_not_touched():
  gradients = {"a": jnp.array([0.03, 0.04])}
  optimizer = clipped(optax.sgd(1.0), max_norm=1.0)
  updates, _ = optimizer.update(gradients, optimizer.init(gradients))
  np.testing.assert_array_equal(updates["a"], -gradients["a"])


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan")])
def test_a_norm_that_is_not_above_zero_is_refused(max_norm):
  with pytest.raises(UserError, match="clipped.max_norm"):
    clipped(AdamW(0.1), max_norm)


def test_groups_have_optimizers_of_their_own():
  """Each group as if it were trained alone."""
  value, gradients = problem()

  def tree(x):
    return {"prompt": {"shared": {"prompt": x}, "row": {"kernel": x}}}

  slow, fast = AdamW(0.001), AdamW(0.1, weight_decay=0.2)
  trained = train(
      grouped([(".*/shared/.*", slow), (".*", fast)]), tree(value),
      [tree(gradient) for gradient in gradients])["prompt"]
  np.testing.assert_allclose(
      trained["shared"]["prompt"], train(slow, value, gradients), rtol=1e-6)
  np.testing.assert_allclose(
      trained["row"]["kernel"], train(fast, value, gradients), rtol=1e-6)


def test_an_optional_group_comes_first_and_may_have_no_parameter():
  """Oracle: the same without it, and its optimizer alone."""
  value, gradients = problem()
  alone = {"encoder": AdamW(0.001), "head": AdamW(0.1)}
  optimizer = grouped(
      [(".*", alone["head"])], [("encoder/.*", alone["encoder"])])
  for names in (["head"], ["encoder", "head"]):
    trained = train(
        optimizer, {name: {"kernel": value} for name in names},
        [{name: {"kernel": gradient} for name in names}
         for gradient in gradients])
    for name in names:
      np.testing.assert_allclose(
          trained[name]["kernel"], train(alone[name], value, gradients),
          rtol=1e-6)


@pytest.mark.parametrize("patterns, sentence", [
    ([".*/shared/.*"], "No pattern .* matches prompt/row"),
    ([".*", ".*/row"], "'.*/row' .* has no trained parameter"),
])
def test_groups_are_of_all_parameters(patterns, sentence):
  optimizer = grouped([(pattern, AdamW(0.1)) for pattern in patterns])
  with pytest.raises(UserError, match=sentence):
    optimizer.init({"prompt": {"shared": {"prompt": jnp.ones(2)},
                               "row": jnp.ones(2)}})
