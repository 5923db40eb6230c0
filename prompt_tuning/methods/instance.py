"""IDPG: the whole prompt of each example is made by one head.

Wu et al. 2022 (arXiv 2204.04497). The head's second kernel has P H columns,
which is most of what is trained; with `heads.Head.phm` both kernels are sums of
Kronecker products, as in the paper.

    train_prompts.Prompt.prompt = @instance.InstancePrompt()
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.methods import heads

Array = jax.Array


class InstancePrompt(nn.Module):
  """A prompt for each example, its parameters under `own`.

  Attributes:
    length: P.
    head: makes the head, called with `features` and `name`.
    encoder: trained with the prompt, see `heads.trained_encoder`; None if the
      encodings are given.
    dtype: of the prompt; parameters are float32.
  """

  length: int
  head: Callable[..., nn.Module] = heads.Head
  encoder: nn.Module | None = None
  dtype: jnp.dtype = jnp.float32

  @property
  def options(self) -> dict[str, Any]:
    """What a file of its parameters says, see `formats.instance`."""
    return {"method": "idpg", "length": self.length,
            "freeze_encoder": self.encoder is None}

  @nn.compact
  def __call__(
      self, x: Array, x_embed: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """The prompt of each example: [B, P, H].

    Args:
      x: [B, T] tokens.
      x_embed: [B, T, H] their embeddings.
      instance: with the encoding; None: see `heads.encoding_of`.
    """
    width = x_embed.shape[-1]
    encoding = heads.encoding_of(self.encoder, x, x_embed, instance)
    own = self.head(features=self.length * width, name="own")(encoding)
    return own.reshape(-1, self.length, width).astype(self.dtype)
