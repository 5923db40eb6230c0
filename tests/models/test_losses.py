"""The loss in chunks against the loss of all logits at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import losses

B, U, H, V = 3, 7, 8, 11


def _head(params, hidden, rng=None):
  hidden = jnp.tanh(hidden @ params["frozen"])
  if rng is not None:
    hidden = hidden * jax.random.bernoulli(rng, 0.5, hidden.shape)
  return (hidden @ params["kernel"]).astype(jnp.float32)


@pytest.fixture(scope="module")
def arrays():
  random = np.random.RandomState(0)
  params = {"frozen": random.randn(H, H), "kernel": random.randn(H, V)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  hidden = jnp.asarray(random.randn(B, U, H), jnp.float32)
  targets = random.randint(0, V, (B, U))
  weights = random.randint(0, 3, (B, U)).astype(np.float32)
  return params, hidden, targets, weights


def _at_once(params, hidden, targets, weights, smoothing=0.0, z_loss=0.0):
  loss, z_term = losses.cross_entropy(
      _head(params, hidden), targets, smoothing, z_loss)
  return jnp.sum(loss * weights), (loss, z_term)


@pytest.fixture(params=[1, 2, 3, 7])
def chunks(request, monkeypatch):
  """How many there are; 7 positions in 2 or 3 need padding."""
  monkeypatch.setattr(losses, "_LEAST_ROWS", -(-B * U // request.param))
  monkeypatch.setattr(losses, "_LOGITS", 0)


@pytest.mark.parametrize("options", [(0.0, 0.0), (0.1, 0.5)])
def test_chunks_add_up(arrays, chunks, options):
  total, found = losses.of_hidden(_head, *arrays, *options)
  expected, (loss, z_term) = _at_once(*arrays, *options)
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
  np.testing.assert_allclose(found.z_loss, z_term, rtol=1e-5)
  params, hidden, targets, _ = arrays
  np.testing.assert_array_equal(
      found.correct, np.argmax(_head(params, hidden), -1) == targets)
  assert 0 < found.correct.sum() < B * U


@pytest.mark.parametrize("moving", [(), ("kernel",), ("kernel", "frozen")])
def test_gradients_are_those_of_all_logits(arrays, chunks, moving):
  """By the hidden states and by the head's parameters that are trained."""
  params, hidden, targets, weights = arrays

  def scaled(function, trained, hidden):
    total, _ = function({**params, **trained}, hidden, targets, weights)
    return 0.3 * total

  trained = {name: params[name] for name in moving}
  found, expected = (
      jax.jit(jax.grad(functools.partial(scaled, function), (0, 1)))(
          trained, hidden)
      for function in (functools.partial(losses.of_hidden, _head), _at_once))
  assert set(found[0]) == set(moving)
  jax.tree.map(lambda ours, plain: np.testing.assert_allclose(
      ours, plain, rtol=0, atol=1e-6 * np.abs(plain).max()), found, expected)


def test_no_gradient_is_made_of_what_is_frozen(arrays):
  """Frozen matrices appear in one product forward and one back, no more."""
  params, hidden, targets, weights = arrays

  def products(trained):
    def total(trained, hidden):
      return losses.of_hidden(
          _head, {**params, **trained}, hidden, targets, weights)[0]

    text = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(trained, hidden))
    return text.count("dot_general")

  assert products({}) == 4
  assert products({"kernel": params["kernel"]}) == 5
  assert products(params) == 6


def test_members_of_a_sweep_have_their_own(arrays, chunks):
  """Under vmap: hidden states of several prompts, one head."""
  params, hidden, targets, weights = arrays
  several = jnp.stack([hidden, 2 * hidden, -hidden])

  def gradient(hidden):
    return jax.grad(lambda h: losses.of_hidden(
        _head, params, h, targets, weights)[0])(hidden)

  found = jax.jit(jax.vmap(gradient))(several)
  for one, alone in zip(found, several):
    np.testing.assert_allclose(one, gradient(alone), atol=1e-6)


def test_each_chunk_draws_its_own_dropout(arrays, monkeypatch):
  """The same position of two chunks is not dropped alike."""
  monkeypatch.setattr(losses, "_LEAST_ROWS", B)
  monkeypatch.setattr(losses, "_LOGITS", 0)
  params, hidden, targets, weights = arrays
  hidden, targets = (
      jnp.broadcast_to(x[:, :1], x.shape) for x in (hidden, targets))
  _, found = losses.of_hidden(
      _head, params, hidden, targets, weights, rng=jax.random.key(0))
  assert len(np.unique(found.loss[0])) == U


def test_ties_go_to_the_first_as_argmax_has_it():
  logits = jnp.asarray([[[1.0, 3.0, 3.0]] * 2])
  _, found = losses.of_hidden(
      lambda params, hidden, rng: hidden, {}, logits, jnp.asarray([[1, 2]]),
      jnp.ones((1, 2)))
  np.testing.assert_array_equal(found.correct, [[True, False]])
