"""Self-attention of decoder-only models, with a door for keys and values.

Text encoders run it with a mask of padding alone.

A prefix stands before the text of every layer: keys and values that all
examples share, or each example's own. It comes from prefix tuning, or from a
prompt that was run once for the whole batch.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.models import layers, products, rotary

Array = jax.Array
KeyValue = tuple[Array, Array]


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Slope of each head's penalty on distance: [N] float32.

  Press et al. 2021 (2108.12409), section 3; head numbers that are no power of
  two take every other slope of the next power, as BLOOM does.
  """
  power = 2 ** int(np.floor(np.log2(num_heads)))
  slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
  extra = 2.0 ** (-4.0 / power * np.arange(1, 2 * (num_heads - power), 2))
  return np.concatenate([slopes, extra]).astype(np.float32)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array,
    prefix: KeyValue | None = None,
    prefix_bias: Array | None = None,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> Array:
  """Softmax attention over a prefix and the text.

  The two parts are never concatenated. Heads come before the batch, so that
  the queries of all examples are one matrix to a shared prefix: no copy of the
  prefix an example, and none of the scores to reorder them.

  Args:
    query: [K, B, G, T, D], scaled; G query heads read one of keys.
    key: [K, B, S, D].
    value: [K, B, S, D].
    bias: broadcastable to [K, B, G, T, S].
    prefix: keys and values [K, 1 or B, P, D], visible to every query.
    prefix_bias: broadcastable to [K, B, G, T, P], if the prefix needs one.
    drop: dropout of the weights.

  Returns:
    [K, B, G, T, D] in the query's dtype; scores and softmax are float32.
  """
  parts = [(key, value, bias)]
  if prefix is not None:
    parts.append((*prefix, prefix_bias))

  def rows(x, keys):  # [K, B, G, T, .] as matrices that meet those keys
    return x.reshape(*keys.shape[:2], -1, x.shape[-1])

  found = []
  for keys, _, added in parts:
    scores = products.einsum(
        "kbqd,kbsd->kbqs", rows(query, keys), keys, jnp.float32)
    scores = scores.reshape(*query.shape[:-1], -1)
    found.append(scores if added is None else scores + added)
  # Softmax is invariant to what is subtracted, so no gradient goes there.
  top = lax.stop_gradient(functools.reduce(jnp.maximum, [
      jnp.max(scores, axis=-1, keepdims=True) for scores in found]))
  weights = [jnp.exp(scores - top) for scores in found]
  total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
  out = sum(
      products.einsum(
          "kbqs,kbsd->kbqd", rows(drop(w).astype(values.dtype), values), values,
          jnp.float32).reshape(query.shape)
      for w, (_, values, _) in zip(weights, parts))
  return (out / total).astype(query.dtype)


def fused_attend(
    query: Array, key: Array, value: Array, prefix: KeyValue | None = None
) -> Array:
  """`attend` through `jax.nn.dot_product_attention`, causal masks only.

  Its causal mask starts both sides at 0, so the queries are padded in front
  with one row a prefix position, whose outputs are dropped: exact, and the
  kernel needs no mask array.

  Args:
    query: [K, B, G, T, D], scaled.
    key: [K, B, T, D].
    value: [K, B, T, D].
    prefix: see `attend`.

  Returns:
    [K, B, G, T, D].
  """
  extra = 0
  if prefix is not None:
    extra = prefix[0].shape[2]
    key, value = (
        jnp.concatenate([
            jnp.broadcast_to(
                part, (*own.shape[:2], *part.shape[2:])).astype(own.dtype),
            own], axis=2)
        for part, own in zip(prefix, (key, value)))
  on_gpu = jax.default_backend() == "gpu" and query.dtype.itemsize == 2
  out = jax.nn.dot_product_attention(
      jnp.pad(_joined(query), ((0, 0), (extra, 0), (0, 0), (0, 0))),
      *(x.transpose(1, 2, 0, 3) for x in (key, value)), scale=1.0,
      is_causal=True, implementation="cudnn" if on_gpu else None)
  return _grouped(out[:, extra:], query.shape[0])


def _grouped(x: Array, groups: int) -> Array:
  """[B, T, N, D] -> [K, B, G, T, D]."""
  x = x.reshape(*x.shape[:2], groups, -1, x.shape[-1])
  return x.transpose(2, 0, 3, 1, 4)


def _joined(x: Array) -> Array:
  """[K, B, G, T, D] -> [B, T, N, D], the inverse of `_grouped`."""
  x = x.transpose(1, 3, 0, 2, 4)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


class SelfAttention(nn.Module):
  """Projections, rotation, cache and attention of one layer.

  Attributes:
    config: see `causal_lm.Config`.
  """

  config: object

  @nn.compact
  def __call__(
      self,
      x: Array,
      prefix: KeyValue | None,
      angles: KeyValue | None,
      biases: tuple[Array | None, Array | None],
      cache_index: Array | None,
      cache_length: int | None = None,
  ) -> tuple[Array, KeyValue]:
    """Attends among `x`, the prefix and the cache.

    Args:
      x: [B, T, H].
      prefix: keys and values [1 or B, K, P, D] as they stand, or None.
      angles: see `rotary.angles`; None does not rotate.
      biases: of text and of prefix, see `attend`. None for the text: causal
        and nothing else, which the fused kernel knows by itself.
      cache_index: scalar, where in the cache these T positions begin; None:
        there is none.
      cache_length: S of the cache.

    Returns:
      [B, T, H], and this call's own keys and values, each [B, K, T, D].
    """
    config = self.config
    width, groups = config.head_dim, config.kv_heads

    def project(name, count):
      out = layers.Dense(
          count * width, ("embed", "joined_kv"), config.dtype,
          use_bias=config.qkv_bias, name=name)(x)
      return _grouped(out.reshape(*x.shape[:2], count, width), groups)

    query, key, value = (
        project("query", config.num_heads), project("key", groups),
        project("value", groups))
    if angles is not None:
      query, key = (
          rotary.rotate(part, *angles, config.rotary_interleaved)
          for part in (query, key))
    scale = config.attention_scale
    query = query * (width**-0.5 if scale is None else scale)
    key, value = key[:, :, 0], value[:, :, 0]  # [K, B, T, D]
    own = tuple(jnp.swapaxes(part, 0, 1) for part in (key, value))
    if cache_index is not None:
      key, value = (
          self._extended(name, part, cache_index, cache_length)
          for name, part in (("cached_key", key), ("cached_value", value)))
    if prefix is not None:
      prefix = tuple(
          jnp.swapaxes(part, 0, 1).astype(query.dtype) for part in prefix)
    bias, prefix_bias = biases
    if bias is None:
      out = fused_attend(query, key, value, prefix)
    else:
      out = attend(
          query, key, value, bias, prefix, prefix_bias, lambda weights: (
              layers.element_dropout(self, weights, config.dropout_rate)))
    out = layers.Dense(
        x.shape[-1], ("joined_kv", "embed"), config.dtype,
        use_bias=config.attention_out_bias, name="out")(
            _joined(out).reshape(*x.shape[:2], -1))
    return out, own

  def _extended(self, name: str, new: Array, index: Array, length: int):
    """Writes `new` into the cache at `index`; gives all of it."""
    shape = (*new.shape[:2], length, new.shape[3])
    cached = self.variable("cache", name, jnp.zeros, shape, new.dtype)
    cached.value = lax.dynamic_update_slice_in_dim(
        cached.value, new, index, axis=2)
    return cached.value
