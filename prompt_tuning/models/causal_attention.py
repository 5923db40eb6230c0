"""Self-attention of decoder-only models, with a door for keys and values.

A prefix stands before the text of every layer: keys and values [1, K, P, D]
that all examples share, or [B, K, P, D]. It comes from prefix tuning, or from
a prompt that was run once for the whole batch.
"""

import functools

import flax.linen as nn
import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.models import layers, rotary

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


# What backpropagation through `attend` finds kept: the text's weights and the
# maxima. The prefix's weights it makes again: one product for the whole batch,
# 10 % less memory in a step with a prompt as long as the text.
_KEPT = "attention_kept"


@functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names(_KEPT))
def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array,
    prefix: KeyValue | None = None,
    prefix_bias: Array | None = None,
) -> Array:
  """Softmax attention over a prefix and the text, heads in groups.

  The two parts are never concatenated: a shared prefix is one product for the
  whole batch and has no copy an example.

  Args:
    query: [B, N, T, D], scaled.
    key: [B, K, S, D]; query head n reads head n // (N / K).
    value: [B, K, S, D].
    bias: broadcastable to [B, N, T, S].
    prefix: keys and values [1 or B, K, P, D], visible to every query.
    prefix_bias: broadcastable to [B, N, T, P], if the prefix needs one.

  Returns:
    [B, N, T, D] in the query's dtype; scores and softmax are float32.
  """
  batch, heads, length, width = query.shape
  groups = key.shape[1]
  grouped = query.reshape(batch, groups, -1, width)  # [B, K, N / K * T, D]

  def scores(equation, keys, added):
    found = jnp.einsum(
        equation, grouped, keys, preferred_element_type=jnp.float32)
    found = found.reshape(batch, heads, length, -1)
    return found if added is None else found + added

  def mix(equation, weights, values):
    weights = weights.astype(value.dtype).reshape(
        batch, groups, -1, values.shape[-2])
    return jnp.einsum(equation, weights, values).astype(jnp.float32)

  parts = [scores("bkqd,bksd->bkqs", key, bias)]
  readers = [functools.partial(mix, "bkqs,bksd->bkqd", values=value)]
  if prefix is not None:
    keys, values = prefix
    axes = "kp" if keys.shape[0] == 1 else "bkp"
    if keys.shape[0] == 1:
      keys, values = keys[0], values[0]
    parts.append(scores(f"bkqd,{axes}d->bkqp", keys, prefix_bias))
    readers.append(functools.partial(
        mix, f"bkqp,{axes}d->bkqd", values=values))
  # Softmax is invariant to what is subtracted, so no gradient goes there.
  top = lax.stop_gradient(functools.reduce(jnp.maximum, [
      jnp.max(part, axis=-1, keepdims=True) for part in parts]))
  top = ad_checkpoint.checkpoint_name(top, _KEPT)
  weights = [jnp.exp(part - top) for part in parts]
  weights[0] = ad_checkpoint.checkpoint_name(weights[0], _KEPT)
  total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
  out = sum(read(w) for read, w in zip(readers, weights))
  out = out.reshape(batch, heads, length, width) / total
  return out.astype(query.dtype)


def fused_attend(
    query: Array, key: Array, value: Array, prefix: KeyValue | None = None
) -> Array:
  """`attend` through `jax.nn.dot_product_attention`, causal masks only.

  Its causal mask starts both sides at 0, so the queries are padded in front
  with one row a prefix position, whose outputs are dropped: exact, and the
  kernel needs no mask array.

  Args:
    query: [B, N, T, D], scaled.
    key: [B, K, T, D].
    value: [B, K, T, D].
    prefix: see `attend`.

  Returns:
    [B, N, T, D].
  """
  extra = 0
  if prefix is not None:
    extra = prefix[0].shape[2]
    key, value = (
        jnp.concatenate([
            jnp.broadcast_to(
                part, (own.shape[0], *part.shape[1:])).astype(own.dtype),
            own], axis=2)
        for part, own in zip(prefix, (key, value)))
    query = jnp.pad(query, ((0, 0), (0, 0), (extra, 0), (0, 0)))
  on_gpu = jax.default_backend() == "gpu" and query.dtype.itemsize == 2
  out = jax.nn.dot_product_attention(
      *(jnp.swapaxes(x, 1, 2) for x in (query, key, value)), scale=1.0,
      is_causal=True, implementation="cudnn" if on_gpu else None)
  return jnp.swapaxes(out[:, extra:], 1, 2)


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
      [B, T, H], and this call's own keys and values [B, K, T, D].
    """
    config = self.config
    width = config.head_dim
    heads, groups = config.num_heads, config.kv_heads

    def project(name, count):
      out = layers.Dense(
          count * width, ("embed", "joined_kv"), config.dtype,
          use_bias=config.qkv_bias, name=name)(x)
      out = out.reshape(*x.shape[:2], count, width)
      return jnp.swapaxes(out, 1, 2)  # [B, count, T, D]

    query, key, value = (
        project("query", heads), project("key", groups),
        project("value", groups))
    if angles is not None:
      query, key = (
          rotary.rotate(part, *angles, config.rotary_interleaved)
          for part in (query, key))
    scale = config.attention_scale
    query = query * (width**-0.5 if scale is None else scale)
    own = key, value
    if cache_index is not None:
      key, value = (
          self._extended(name, part, cache_index, cache_length)
          for name, part in (("cached_key", key), ("cached_value", value)))
    if prefix is not None:
      prefix = tuple(part.astype(query.dtype) for part in prefix)
    bias, prefix_bias = biases
    if bias is None:
      out = fused_attend(query, key, value, prefix)
    else:
      out = attend(query, key, value, bias, prefix, prefix_bias)
    out = jnp.swapaxes(out, 1, 2).reshape(*x.shape[:2], heads * width)
    out = layers.Dense(
        x.shape[-1], ("joined_kv", "embed"), config.dtype,
        use_bias=config.attention_out_bias, name="out")(out)
    return out, own

  def _extended(self, name: str, new: Array, index: Array, length: int):
    """Writes `new` into the cache at `index`; gives all of it."""
    shape = (*new.shape[:2], length, new.shape[3])
    cached = self.variable("cache", name, jnp.zeros, shape, new.dtype)
    cached.value = lax.dynamic_update_slice_in_dim(
        cached.value, new, index, axis=2)
    return cached.value
