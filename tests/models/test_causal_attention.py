"""Attention over a prefix and the text, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import causal_attention, layers

B, K, G, T, P, D = 3, 2, 2, 5, 4, 8


def _random(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return rng.standard_normal(shape).astype(np.float32)


def _inputs(prefix_rows=None):
  arrays = [_random(K, B, G, T, D), _random(K, B, T, D, seed=1),
            _random(K, B, T, D, seed=2)]
  if prefix_rows is None:
    return (*arrays, None)
  return (*arrays, (_random(K, prefix_rows, P, D, seed=3),
                    _random(K, prefix_rows, P, D, seed=4)))


def _reference(query, key, value, bias, prefix, prefix_bias=None):
  """Everything written out: prefix and text side by side, head by head."""
  extra = 0
  if prefix is not None:
    key, value = (
        np.concatenate([np.broadcast_to(p, (K, B, P, D)), x], axis=2)
        for p, x in zip(prefix, (key, value)))
    extra = P
  added = np.zeros((K, B, G, T, extra + T))
  added[..., extra:] = bias
  if prefix_bias is not None:
    added[..., :extra] = prefix_bias
  out = np.zeros((K, B, G, T, D))
  for k, b, g in np.ndindex(K, B, G):
    scores = query[k, b, g].astype(float) @ key[k, b].T + added[k, b, g]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out[k, b, g] = weights / weights.sum(-1, keepdims=True) @ value[k, b]
  return out


@pytest.mark.parametrize("prefix_rows", [None, 1, B])
def test_attend_is_softmax_attention(prefix_rows):
  query, key, value, prefix = _inputs(prefix_rows)
  bias = np.asarray(layers.causal_mask(T)) + _random(B, 1, T, T, seed=5)
  prefix_bias = prefix and _random(K, 1, G, 1, P, seed=7)
  np.testing.assert_allclose(
      causal_attention.attend(query, key, value, bias, prefix, prefix_bias),
      _reference(query, key, value, bias, prefix, prefix_bias), atol=2e-6)


@pytest.mark.parametrize("prefix_rows", [None, 1, B])
def test_fused_attention_and_its_gradients_are_the_plain_ones(prefix_rows):
  inputs = _inputs(prefix_rows)
  weights = _random(K, B, G, T, D, seed=6)

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
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_alibi_slopes_are_the_papers():
  np.testing.assert_allclose(
      causal_attention.alibi_slopes(8), [2.0**-i for i in range(1, 9)])


def test_alibi_slopes_of_other_numbers_of_heads():
  """Section 3's code: the next power's odd slopes fill up."""
  of_16 = [2.0 ** (-i / 2) for i in range(1, 17)]
  np.testing.assert_allclose(
      causal_attention.alibi_slopes(12),
      [2.0**-i for i in range(1, 9)] + of_16[0:8:2], rtol=1e-6)
