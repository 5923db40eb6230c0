"""Prefix tuning: learned keys and values in front of every layer's own.

Li & Liang 2021 (arXiv 2101.00190). A prefix is a table [P, L * 2 * K * D]; in
a row the keys of a layer come before its values, heads before head width: the
layout of the authors and of PEFT. `ProjectedPrefix` makes the table from a
small one by an MLP, for training alone: saved is the table (`fold`).

    causal_lm.CausalLM.prefix_factory = @prefix.ProjectedPrefix
    t5.EncoderDecoder.decoder_prefix_factory = @prefix.ProjectedPrefix
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning.methods import linear

Array = jax.Array
Initializer = Callable[..., Array]


def split(table: Array, layers: int, heads: int) -> tuple[Array, Array]:
  """A table's keys and values.

  Args:
    table: [P, L * 2 * K * D].
    layers: L.
    heads: K.

  Returns:
    Keys and values, each [L, 1, K, P, D].
  """
  parts = table.reshape(table.shape[0], layers, 2, heads, -1)  # [P, L, 2, K, D]
  parts = parts.transpose(2, 1, 3, 0, 4)[:, :, None]  # [2, L, 1, K, P, D]
  return parts[0], parts[1]


def join(keys: Array, values: Array) -> Array:
  """The inverse of `split`: two [L, 1, K, P, D] -> [P, L * 2 * K * D]."""
  parts = jnp.stack([keys, values])[:, :, 0]  # [2, L, K, P, D]
  parts = parts.transpose(3, 1, 0, 2, 4)  # [P, L, 2, K, D]
  return parts.reshape(parts.shape[0], -1)


def _sizes(config) -> tuple[int, int, int]:
  """L, K and D of a `causal_lm.Config`, or of the decoder of a `t5.Config`."""
  layers = getattr(config, "num_decoder_layers", None) or config.num_layers
  heads = getattr(config, "num_kv_heads", None) or config.num_heads
  return layers, heads, config.head_dim


class Prefix(nn.Module):
  """The table itself, the parameter `prefix`.

  Attributes:
    length: P.
    prefix_init: N(0, 1) as in PEFT and with the authors; zeros start nearer
      to the frozen model, and did better in PEFT's own comparison.
    dtype: of keys and values; the parameter is float32.
  """

  length: int
  prefix_init: Initializer = nn.initializers.normal(1.0)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, config) -> tuple[Array, Array]:
    """A model's config -> keys and values, each [L, 1, K, P, D]."""
    layers, heads, width = _sizes(config)
    table = partitioning.param_with_axes(
        "prefix", self.prefix_init,  # a saved one's takes no dtype
        (self.length, layers * 2 * heads * width),
        axes=("prompt", "prefix"))
    return split(table.astype(self.dtype), layers, heads)


class ProjectedPrefix(nn.Module):
  """A table [P, K * D] through a dense layer, tanh, and another dense layer.

  The authors found the table alone unstable to train (4.3).

  Attributes:
    length: P.
    hidden_dim: width behind the first layer; the authors' 512 (800 for
      summarisation), K * D, which is PEFT's default, if None.
    zero_output: start the last layer, and so the prefix, at 0.
    dtype: of keys and values; parameters are float32.
  """

  length: int
  hidden_dim: int | None = None
  zero_output: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, config) -> tuple[Array, Array]:
    """A model's config -> keys and values, each [L, 1, K, P, D]."""
    layers, heads, width = _sizes(config)
    h = partitioning.param_with_axes(
        "embedding", nn.initializers.normal(1.0),
        (self.length, heads * width), jnp.float32,
        axes=("prompt", "prompt_embed"))
    h = jnp.tanh(linear.Linear(
        self.hidden_dim or heads * width, ("prompt_embed", "prompt_hidden"),
        name="mlp_0")(h))
    table = linear.Linear(
        layers * 2 * heads * width, ("prompt_hidden", "prefix"),
        self.zero_output, name="mlp_1")(h)
    return split(table.astype(self.dtype), layers, heads)


def fold(module: nn.Module, params: Any, config) -> Array:
  """The table [P, L * 2 * K * D] that a prefix module makes."""
  return join(*module.apply({"params": params}, config))
