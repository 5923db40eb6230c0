"""A prompt for every layer, at the first P positions.

Between prompt tuning and prefix tuning: what a layer reads at the positions of
the prompt is replaced, or added to, and goes through the layer's own
projections (the original's `extended`; adding is the deep perturbation of Qin
and Eisner 2021, arXiv 2104.06599). The layers are a T5's encoder or a
decoder-only model's; for those:

    causal_lm.CausalLM.prompt_factory = @train_prompts.Prompt
    train_prompts.Prompt.prompt = @per_layer.Room()
    causal_lm.CausalLM.layer_prompt_factory = @per_layer/train_prompts.Prompt
    per_layer/train_prompts.Prompt.prompt = @prompts.Prompt()
    per_layer/train_prompts.Prompt.combine = @per_layer.replace_prompt

In the original a prompt is also trained at the embedded input, of which
nothing is left where the first layer replaces it. `Room` is in its place.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def replace_prompt(prompt: Array, x_embed: Array, x: None) -> Array:
  """Prompt [B, P, H] in the place of the first P of x_embed [B, T, H]."""
  del x
  return jnp.concatenate([prompt, x_embed[:, prompt.shape[1]:]], axis=1)


def add_prompt(prompt: Array, x_embed: Array, x: None) -> Array:
  """Prompt [B, P, H] added to the first P of x_embed [B, T, H]."""
  del x
  return x_embed.at[:, :prompt.shape[1]].add(prompt)


class Room(nn.Module):
  """A prompt of zeros, for the layers' prompts; no parameter.

  Attributes:
    length: P.
  """

  length: int

  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T], embeddings [B, T, H] -> [P, H]."""
    del x
    return jnp.zeros((self.length, x_embed.shape[-1]), x_embed.dtype)
