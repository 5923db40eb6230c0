"""Prefix tuning: learned keys and values in front of every layer's own.

Li & Liang 2021 (arXiv 2101.00190). A prefix is a table [P, L * 2 * K * D]; in
a row the keys of a layer come before its values, heads before head width: the
layout of the authors and of PEFT. `ProjectedPrefix` makes the table from a
small one by an MLP, for training alone: saved is the table (`fold`). `Prefix`
is the table itself: P-tuning v2 (Liu et al. 2022, arXiv 2110.07602), which has
no reparametrisation.

    causal_lm.CausalLM.prefix_factory = @prefix.ProjectedPrefix
    t5.EncoderDecoder.encoder_prefix_factory = @prefix.ProjectedPrefix
    t5.EncoderDecoder.decoder_prefix_factory = @prefix.ProjectedPrefix
    t5.EncoderDecoder.cross_prefix_factory = @prefix.ProjectedPrefix

An encoder-decoder has the paper's three sets, each from a module of its own:
for the encoder's self-attention, the decoder's, and cross-attention.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors
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


class _KeysAndValues(nn.Module, kw_only=True):
  """What a prefix with a parametrisation and without have in common.

  Attributes:
    dropout: of the table, in training steps with USE_DROPOUT; one mask for all
      examples of a step.
    peft_layers: in an encoder-decoder the table is for the encoder's L layers,
      and layer i of the decoder reads layer 2 i mod L of it, so that half of it
      is never read. PEFT has it so; only what is trained so can be written for
      it. Decoder-only models are the same here and there.
    dtype: of keys and values; parameters are float32.
    start: (the model's module, its parameters, P) -> the table to start from
      (`methods.prefix_start`) instead of random numbers.
  """

  dropout: float = 0.0
  peft_layers: bool = False
  dtype: jnp.dtype = jnp.float32
  start: Callable[..., Array] | None = None

  def sizes(self, config, layers: int | None) -> tuple[int, int, int]:
    """L, K and D of the table."""
    if self._shares_layers(config):
      layers = config.num_encoder_layers
    layers = (layers or getattr(config, "num_decoder_layers", None)
              or config.num_layers)
    heads = getattr(config, "num_kv_heads", None) or config.num_heads
    return layers, heads, config.head_dim

  def finished(self, table: Array, config, layers: int | None):
    """The table [P, L * 2 * K * D] -> what the layers get."""
    if self.dropout and self.has_rng("dropout"):
      keep = jax.random.bernoulli(
          self.make_rng("dropout"), 1 - self.dropout, table.shape)
      table = jnp.where(keep, table / (1 - self.dropout), 0)
    made, heads, _ = self.sizes(config, layers)
    keys, values = split(table.astype(self.dtype), made, heads)
    if self._shares_layers(config):
      read = 2 * np.arange(layers or config.num_decoder_layers) % made
      keys, values = keys[read], values[read]
    return keys, values

  def _shares_layers(self, config) -> bool:
    return self.peft_layers and hasattr(config, "num_encoder_layers")


class Prefix(_KeysAndValues):
  """The table itself, the parameter `prefix`.

  Attributes:
    length: P.
    prefix_init: N(0, 1) as in PEFT and with the authors; zeros start nearer
      to the frozen model, and did better in PEFT's own comparison.
    others: see `_KeysAndValues`.
  """

  length: int
  prefix_init: Initializer = nn.initializers.normal(1.0)

  @nn.compact
  def __call__(
      self, config, layers: int | None = None) -> tuple[Array, Array]:
    """A model's config -> keys and values, each [L, 1, K, P, D].

    Args:
      config: a `causal_lm.Config` or `t5.Config`.
      layers: L; None is that of the config, or of its decoder.
    """
    count, heads, width = self.sizes(config, layers)
    table = partitioning.param_with_axes(
        "prefix", self.prefix_init,  # a saved one's takes no dtype
        (self.length, count * 2 * heads * width),
        axes=("prompt", "prefix"))
    return self.finished(table, config, layers)


class ProjectedPrefix(_KeysAndValues):
  """A table [P, K * D] through dense layers with tanh between them.

  The authors found the table alone unstable to train (4.3).

  Attributes:
    length: P.
    hidden_dim: width of the inner layers; the authors' 512 (800 for
      summarisation), K * D, which is PEFT's default, if None.
    num_layers: dense layers: 2, or the 3 of the authors' `deep` option.
    zero_output: start the last layer, and so the prefix, at 0.
    others: see `_KeysAndValues`.
  """

  length: int
  hidden_dim: int | None = None
  num_layers: int = 2
  zero_output: bool = False

  @nn.compact
  def __call__(
      self, config, layers: int | None = None) -> tuple[Array, Array]:
    """A model's config -> keys and values, each [L, 1, K, P, D].

    Args:
      config: see `Prefix`.
      layers: see `Prefix`.
    """
    if self.num_layers not in (2, 3):
      raise errors.UserError(
          f"PREFIX_MLP_LAYERS (ProjectedPrefix.num_layers) is "
          f"{self.num_layers!r}: it can be 2 or 3; without an MLP take "
          "PREFIX = @prefix.Prefix.")
    count, heads, width = self.sizes(config, layers)
    h = partitioning.param_with_axes(
        "embedding", nn.initializers.normal(1.0),
        (self.length, heads * width), jnp.float32,
        axes=("prompt", "prompt_embed"))
    axes = "prompt_embed"
    for i in range(self.num_layers - 1):
      h = jnp.tanh(linear.Linear(
          self.hidden_dim or heads * width, (axes, "prompt_hidden"),
          name=f"mlp_{i}")(h))
      axes = "prompt_hidden"
    table = linear.Linear(
        count * 2 * heads * width, (axes, "prefix"), self.zero_output,
        name=f"mlp_{self.num_layers - 1}")(h)
    return self.finished(table, config, layers)


def fold(
    module: nn.Module, params: Any, config, layers: int | None = None
) -> Array:
  """The table [P, L * 2 * K * D] that each of L layers reads of a module's."""
  return join(*module.apply({"params": params}, config, layers))
