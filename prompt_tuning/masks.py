"""Masks for inputs that carry a prompt, under the original's names.

Our own modules derive their masks from shapes and need none of these; they
are here for modules written against the original's interface.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def add_fake_prompt(
    prompt_length: int, multitask: bool = False
) -> Callable[[Array], Array]:
  """Makes a function that stands P ones in front of tokens, for masks.

  Args:
    prompt_length: P.
    multitask: the first token is a task index and is dropped first.

  Returns:
    [B, T] -> [B, P + T] (or [B, P + T - 1]), in the tokens' dtype.
  """
  def add(tokens: Array) -> Array:
    if multitask:
      tokens = tokens[:, 1:]
    fake = jnp.ones((tokens.shape[0], prompt_length), tokens.dtype)
    return jnp.concatenate([fake, tokens], axis=1)

  return add


def create_prompt_encoder_mask(prompt_length: int) -> Callable[..., Array]:
  """Full visibility among prompt and tokens; none from or to padding.

  Args:
    prompt_length: P.

  Returns:
    (tokens [B, T], dtype=float32) -> [B, 1, P + T, P + T] of zeros and ones.
  """
  add = add_fake_prompt(prompt_length)

  def create(tokens: Array, dtype=jnp.float32) -> Array:
    is_token = add(tokens) > 0
    return _pairs(is_token, is_token)[:, None].astype(dtype)

  return create


def create_prompt_decoder_only_mask(
    prompt_length: int,
) -> Callable[..., Array]:
  """Causal visibility over prompt and targets, or a bidirectional prefix.

  Args:
    prompt_length: P.

  Returns:
    (target_tokens [B, T], causal_attention [B, T] or None, dtype) ->
    [B, 1, P + T, P + T]. Positions where `causal_attention` is 1 see each
    other, and the prompt is one of them.
  """
  add = add_fake_prompt(prompt_length)

  def create(
      target_tokens: Array, causal_attention: Array | None = None,
      dtype=jnp.float32,
  ) -> Array:
    is_token = add(target_tokens) > 0
    length = is_token.shape[1]
    sees = jnp.tril(jnp.ones((1, length, length), bool))
    if causal_attention is not None:
      prefix = add(causal_attention) > 0
      sees = sees | _pairs(prefix, prefix)
    return (sees & _pairs(is_token, is_token))[:, None].astype(dtype)

  return create


def _pairs(queries: Array, keys: Array) -> Array:
  """[B, T] and [B, S] bool -> [B, T, S], true where both are."""
  return queries[:, :, None] & keys[:, None, :]
