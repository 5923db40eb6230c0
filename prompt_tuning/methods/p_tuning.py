"""P-tuning: the prompt is what a small network makes of a table.

Liu et al. 2021 (arXiv 2103.10385). The networks are PEFT's: an MLP, or a
bidirectional LSTM behind which a smaller MLP stands. They are for training
alone: what is saved is their output [P, H] (`methods.folded`), and that is a
plain prompt.

Modules here take the place of `prompts.Prompt`:

    train_prompts.Prompt.prompt = @p_tuning.MlpPrompt()
"""

import flax.linen as nn
from flax.linen import partitioning
import jax
from jax import lax
import jax.numpy as jnp

from prompt_tuning.methods import linear

Array = jax.Array

_INTO_HIDDEN = ("prompt_embed", "prompt_hidden")
_IN_HIDDEN = ("prompt_hidden", "prompt_hidden")
_OUT_OF_HIDDEN = ("prompt_hidden", "prompt_embed")


def lstm(x: Array, params: dict[str, Array], reverse: bool = False) -> Array:
  """One direction of one LSTM layer over the prompt's positions.

  Args:
    x: [P, in].
    params: `input_kernel` [in, 4h], `hidden_kernel` [h, 4h], `bias` [4h];
      gates in torch's order: input, forget, cell, output.
    reverse: from the last position to the first.

  Returns:
    [P, h].
  """
  width = params["hidden_kernel"].shape[0]
  # The input's share of all gates at once: one matmul instead of P.
  projected = x @ params["input_kernel"] + params["bias"]  # [P, 4h]

  def step(carry, gates):
    hidden, cell = carry
    i, f, g, o = jnp.split(gates + hidden @ params["hidden_kernel"], 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (hidden, cell), hidden

  start = jnp.zeros(width, x.dtype)
  return lax.scan(step, (start, start), projected, reverse=reverse)[1]


class _Lstm(nn.Module):
  """One direction of one layer: [P, in] -> [P, h]."""

  hidden_dim: int
  reverse: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    start = linear.uniform_fan_in(self.hidden_dim)  # torch's, for every weight
    shapes = {
        "input_kernel": ((x.shape[-1], 4 * self.hidden_dim), _INTO_HIDDEN),
        "hidden_kernel": ((self.hidden_dim, 4 * self.hidden_dim), _IN_HIDDEN),
        "bias": ((4 * self.hidden_dim,), _IN_HIDDEN[1:])}
    params = {
        name: partitioning.param_with_axes(
            name, start, shape, jnp.float32, axes=axes)
        for name, (shape, axes) in shapes.items()}
    return lstm(x, params, self.reverse)


def table(length: int, width: int) -> Array:
  """The parameter `embedding` [P, H] that goes into the network."""
  return partitioning.param_with_axes(
      "embedding", nn.initializers.normal(1.0), (length, width), jnp.float32,
      axes=("prompt", "prompt_embed"))


class MlpPrompt(nn.Module):
  """[P, H] through three dense layers, ReLU between them.

  Attributes:
    length: P.
    hidden_dim: width of the two inner layers; the model's H if None.
    dtype: of the prompt; parameters are float32.
  """

  length: int
  hidden_dim: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T] and their embeddings [B, T, H] -> prompt [P, H]."""
    del x
    width = x_embed.shape[-1]
    hidden = self.hidden_dim or width
    h = table(self.length, width)
    h = jax.nn.relu(linear.Linear(hidden, _INTO_HIDDEN, name="mlp_0")(h))
    h = jax.nn.relu(linear.Linear(hidden, _IN_HIDDEN, name="mlp_1")(h))
    h = linear.Linear(width, _OUT_OF_HIDDEN, name="mlp_2")(h)
    return h.astype(self.dtype)


class LstmPrompt(nn.Module):
  """[P, H] through a bidirectional LSTM, then two dense layers.

  Attributes:
    length: P.
    hidden_dim: width h of one direction; the model's H if None.
    num_layers: of the LSTM.
    dtype: of the prompt; parameters are float32.
  """

  length: int
  hidden_dim: int | None = None
  num_layers: int = 2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T] and their embeddings [B, T, H] -> prompt [P, H]."""
    del x
    width = x_embed.shape[-1]
    hidden = self.hidden_dim or width
    h = table(self.length, width)
    for i in range(self.num_layers):
      forward = _Lstm(hidden, name=f"lstm_{i}_forward")(h)
      backward = _Lstm(hidden, True, name=f"lstm_{i}_backward")(h)
      h = jnp.concatenate([forward, backward], axis=-1)  # [P, 2h]
    h = jax.nn.relu(linear.Linear(2 * hidden, _IN_HIDDEN, name="mlp_0")(h))
    h = linear.Linear(width, _OUT_OF_HIDDEN, name="mlp_1")(h)
    return h.astype(self.dtype)
