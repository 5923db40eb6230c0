"""A prompt through the projection of prefix tuning: the paper's ablation.

Li & Liang 2021 (arXiv 2101.00190), 7.2, tune the embedded input alone, with the
reparametrisation that their prefixes have. The module takes the place of
`prompts.Prompt`; saved is the plain prompt [P, H] that it makes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.methods import linear, p_tuning

Array = jax.Array


class ProjectedPrompt(nn.Module):
  """A table [P, H] through a dense layer, tanh, and another dense layer.

  Attributes:
    length: P.
    hidden_dim: width between them; the authors' 512.
    dtype: of the prompt; parameters are float32.
  """

  length: int
  hidden_dim: int = 512
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T] and their embeddings [B, T, H] -> prompt [P, H]."""
    del x
    width = x_embed.shape[-1]
    h = p_tuning.table(self.length, width)
    h = jnp.tanh(linear.Linear(
        self.hidden_dim, ("prompt_embed", "prompt_hidden"), name="mlp_0")(h))
    h = linear.Linear(
        width, ("prompt_hidden", "prompt_embed"), name="mlp_1")(h)
    return h.astype(self.dtype)
