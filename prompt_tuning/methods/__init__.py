"""Ways to tune a frozen model, one a file.

*   Prompts (`p_tuning`, `multitask`) are modules in the place of
    `prompts.Prompt`: tokens [B, T] and embeddings [B, T, H] -> [P, H], or
    [B, P, H] where examples differ. Those of LOPA and IDPG (`low_rank`,
    `instance`) also take `instance`, what is known of each example.
*   Prefixes (`prefix`) are modules that make keys and values for every layer.
*   Deltas (`lora`, `ia3`, `adapter`) change what dense layers, or whole layers
    of the model, give.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def folded(prompt: nn.Module, params: Any, width: int) -> jax.Array:
  """The table that a prompt module makes of its parameters.

  A P-tuning encoder, or the factors of one task, becomes a plain prompt: this
  is what is saved, shown and shared.

  Args:
    prompt: the module, unbound.
    params: its parameters, such as what lies under `decoder/prompt/prompt`.
    width: H.

  Returns:
    [P, H].
  """
  tokens, embedded = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, width))
  return prompt.apply({"params": params}, tokens, embedded)
