"""Where a prompt stands among the embedded tokens.

`combine` functions take (prompt [B, P, H], x_embed [B, T, H], x [B, T]) and
give [B, P + T, H]; one that has an argument `is_input` [B, T] bool is also told
which tokens are inputs. `Prompt` is the module that gin's PROMPT points to.
"""

from collections.abc import Callable
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import prompts

Array = jax.Array


def prefix_prompt(prompt: Array, x_embed: Array, x: Array) -> Array:
  """The prompt, then the input."""
  del x
  return jnp.concatenate([prompt, x_embed], axis=1)


def prefix_prompt_after_bos(
    prompt: Array, x_embed: Array, x: Array
) -> Array:
  """The first token, then the prompt, then the rest of the input."""
  del x
  return jnp.concatenate([x_embed[:, :1], prompt, x_embed[:, 1:]], axis=1)


def suffix_prompt(
    prompt: Array,
    x_embed: Array,
    x: Array,
    decoder_only: bool = False,
    before_eos: bool = True,
) -> Array:
  """The prompt behind the text of each example; padding moves to the end.

  Args:
    prompt: [B, P, H].
    x_embed: [B, T, H].
    x: [B, T] tokens; 0 is padding.
    decoder_only: the first token is a 0 that starts the sequence and counts
      as text.
    before_eos: keep the last token (end-of-sequence) behind the prompt.

  Returns:
    [B, P + T, H].
  """
  end = jnp.sum(x != 0, axis=1) + int(decoder_only) - int(before_eos)
  # A full row without the 0 that `decoder_only` promises ends at T: one more,
  # as in the original, would push the prompt into the next example.
  return _inserted(prompt, x_embed, jnp.clip(end, 0, x.shape[1]))


def infix_prompt(
    prompt: Array, x_embed: Array, x: Array, is_input: Array | None = None
) -> Array:
  """The prompt between source and target: before the last input token.

  Of Li & Liang 2021 (arXiv 2101.00190), 7.3. The last input token is what
  separates both, such as GPT-2's `<|endoftext|>`; it predicts the first target.

  Args:
    prompt: [B, P, H].
    x_embed: [B, T, H].
    x: [B, T] tokens.
    is_input: [B, T] bool; None: tokens above 0.

  Returns:
    [B, P + T, H].
  """
  inputs = x > 0 if is_input is None else is_input
  return _inserted(
      prompt, x_embed, jnp.maximum(jnp.sum(inputs, axis=1) - 1, 0))


def _inserted(prompt: Array, x_embed: Array, end: Array) -> Array:
  """Prompts [B, P, H] behind the first `end` [B] vectors of [B, T, H]."""
  length, p = x_embed.shape[1], prompt.shape[1]
  end = end[:, None]  # [B, 1] tokens in front
  position = jnp.arange(p + length)[None]  # [1, P + T] of the output
  source = jnp.where(
      position < end, position + p,  # text in front of the prompt
      jnp.where(position < end + p, position - end, position))
  both = jnp.concatenate([prompt, x_embed], axis=1)
  return jnp.take_along_axis(both, source[..., None], axis=1)


class Prompt(nn.Module):
  """Puts a prompt in place; one [P, H] that is no example's own is repeated."""

  prompt: nn.Module
  combine: Callable[..., Array] = prefix_prompt

  def __call__(
      self, x: Array, x_embed: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T], embeddings [B, T, H] -> [B, P + T, H]."""
    prompt = prompts.called(self.prompt, x, x_embed, instance)
    prompt = prompt.astype(x_embed.dtype)
    if prompt.ndim == 2:
      prompt = prompts.expand_to_batch(prompt, x_embed)
    if "is_input" in inspect.signature(self.combine).parameters:
      return self.combine(
          prompt, x_embed, x, is_input=instance and instance.is_input)
    return self.combine(prompt, x_embed, x)
