"""Attention over a prefix and the text, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import causal_attention, layers

B, N, K, T, P, D = 2, 4, 2, 5, 3, 8


def _random(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return rng.standard_normal(shape).astype(np.float32)


def _inputs(prefix_rows=None):
  arrays = [_random(B, N, T, D), _random(B, K, T, D, seed=1),
            _random(B, K, T, D, seed=2)]
  if prefix_rows is None:
    return (*arrays, None)
  return (*arrays, (_random(prefix_rows, K, P, D, seed=3),
                    _random(prefix_rows, K, P, D, seed=4)))


def _reference(query, key, value, bias, prefix):
  """Everything written out: prefix and text side by side, heads repeated."""
  if prefix is not None:
    key, value = (
        np.concatenate([np.broadcast_to(p, (B, *p.shape[1:])), x], axis=2)
        for p, x in zip(prefix, (key, value)))
  extra = key.shape[2] - T
  bias = np.pad(np.broadcast_to(bias, (B, N, T, T)),
                ((0, 0), (0, 0), (0, 0), (extra, 0)))
  key, value = (np.repeat(x, N // K, axis=1).astype(float)
                for x in (key, value))
  scores = query.astype(float) @ key.swapaxes(-1, -2) + bias
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True) @ value


@pytest.mark.parametrize("prefix_rows", [None, 1, B])
def test_attend_is_softmax_attention(prefix_rows):
  query, key, value, prefix = _inputs(prefix_rows)
  bias = np.asarray(layers.causal_mask(T)) + _random(B, 1, T, T, seed=5)
  np.testing.assert_allclose(
      causal_attention.attend(query, key, value, bias, prefix),
      _reference(query, key, value, bias, prefix), atol=2e-6)


@pytest.mark.parametrize("prefix_rows", [None, 1, B])
def test_fused_attention_and_its_gradients_are_the_plain_ones(prefix_rows):
  inputs = _inputs(prefix_rows)
  weights = _random(B, N, T, D, seed=6)

  def plain(query, key, value, prefix):
    out = causal_attention.attend(
        query, key, value, layers.causal_mask(T), prefix)
    return jnp.sum(out * weights), out

  def fused(query, key, value, prefix):
    out = causal_attention.fused_attend(query, key, value, prefix)
    return jnp.sum(out * weights), out

  argnums = (0, 1, 2) if prefix_rows is None else (0, 1, 2, 3)
  grads, out = jax.grad(plain, argnums, has_aux=True)(*inputs)
  other_grads, other = jax.grad(fused, argnums, has_aux=True)(*inputs)
  np.testing.assert_allclose(other, out, atol=1e-6)
  for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads)):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_alibi_slopes_are_the_papers():
  np.testing.assert_allclose(
      causal_attention.alibi_slopes(8), [2.0**-i for i in range(1, 9)])


def test_alibi_slopes_of_other_numbers_of_heads():
  """Section 3's code: the next power's odd slopes fill up."""
  of_16 = [2.0 ** (-i / 2) for i in range(1, 17)]
  np.testing.assert_allclose(
      causal_attention.alibi_slopes(12),
      [2.0**-i for i in range(1, 9)] + of_16[0:8:2], rtol=1e-6)
