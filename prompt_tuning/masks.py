"""Masks for inputs that carry a prompt, under the original's names.

Our own modules derive the plain masks from shapes. Two uses are left for these
here: modules written against the original's interface, and a say in what may
see what:

    t5.EncoderDecoder.encoder_mask_factory = \\
        @masks.prompt_encoder_attention_mask
    masks.prompt_encoder_attention_mask.allowable_attention = \\
        ['prompt->prompt']

A set of attention names pairs "who sees -> what is seen". The input always sees
itself and the prompt.
"""

from collections.abc import Callable, Collection
import warnings

import jax
import jax.numpy as jnp

from prompt_tuning import errors

Array = jax.Array

INPUT_INPUT = "input->input"
INPUT_PROMPT = "input->prompt"
PROMPT_PROMPT = "prompt->prompt"
PROMPT_PROMPT_CAUSAL = "prompt->prompt;causal"
PROMPT_INPUT = "prompt->input"
ATTENTIONS = (INPUT_INPUT, INPUT_PROMPT, PROMPT_PROMPT, PROMPT_PROMPT_CAUSAL,
              PROMPT_INPUT)


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
  return prompt_encoder_attention_mask(prompt_length)


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
  return prompt_decoder_attention_mask(prompt_length)


def prompt_encoder_attention_mask(
    prompt_length: int,
    allowable_attention: Collection[str] | None = None,
    multitask: bool = False,
    causal_by_default: bool = False,
) -> Callable[..., Array]:
  """The encoder's mask for a prompt in front and a set of attention names.

  Args:
    prompt_length: P.
    allowable_attention: names among `ATTENTIONS`; None is full visibility.
      Without prompt->prompt a position of the prompt sees itself alone.
    multitask: the first token is a task index and is dropped first.
    causal_by_default: None means, as in the original, that positions of the
      prompt see earlier ones alone.

  Returns:
    (tokens [B, T], dtype=float32) -> [B, 1, P + T, P + T] of zeros and ones,
    P + T - 1 with `multitask`.

  Raises:
    UserError: on a name that is not one.
  """
  allowed = _allowed(allowable_attention, causal_by_default)
  add = add_fake_prompt(prompt_length, multitask)

  def create(tokens: Array, dtype=jnp.float32) -> Array:
    is_token = add(tokens) > 0
    return _by_names(is_token, prompt_length, allowed)[:, None].astype(dtype)

  return create


def prompt_decoder_attention_mask(
    prompt_length: int,
    allowable_attention: Collection[str] | None = None,
    multitask: bool = False,
    causal_by_default: bool = False,
) -> Callable[..., Array]:
  """A decoder-only model's mask for a prompt and a set of attention names.

  Args:
    prompt_length: P.
    allowable_attention: what prompt and bidirectional prefix see of each
      other, see `prompt_encoder_attention_mask`.
    multitask: the first token is a task index and is dropped first.
    causal_by_default: see `prompt_encoder_attention_mask`.

  Returns:
    (target_tokens [B, T], causal_attention [B, T] or None, dtype) ->
    [B, 1, P + T, P + T]. Where `causal_attention` is 1 the prefix stands;
    all behind it is causal, and everything is where it is None.
  """
  allowed = _allowed(allowable_attention, causal_by_default)
  add = add_fake_prompt(prompt_length, multitask)

  def create(
      target_tokens: Array, causal_attention: Array | None = None,
      dtype=jnp.float32,
  ) -> Array:
    is_token = add(target_tokens) > 0
    length = is_token.shape[1]
    sees = jnp.tril(jnp.ones((1, length, length), bool))
    if causal_attention is not None:
      is_prefix = add(causal_attention) > 0
      is_text = jnp.arange(length)[:, None] >= prompt_length  # rows
      sees = (sees & is_text) | _by_names(is_prefix, prompt_length, allowed)
    return (sees & _pairs(is_token, is_token))[:, None].astype(dtype)

  return create


def _allowed(names: Collection[str] | None, causal: bool) -> frozenset[str]:
  """The set with what always belongs to it, and one way within the prompt."""
  if names is None:
    within = PROMPT_PROMPT_CAUSAL if causal else PROMPT_PROMPT
    return frozenset({INPUT_INPUT, INPUT_PROMPT, PROMPT_INPUT, within})
  names = {names} if isinstance(names, str) else set(names)
  if unknown := names - set(ATTENTIONS):
    raise errors.UserError(
        f"allowable_attention has {', '.join(map(repr, sorted(unknown)))}: "
        f"what it may have is {', '.join(map(repr, ATTENTIONS))}.")
  if {PROMPT_PROMPT, PROMPT_PROMPT_CAUSAL} <= names:
    warnings.warn(
        f"allowable_attention has both {PROMPT_PROMPT!r} and "
        f"{PROMPT_PROMPT_CAUSAL!r}: the prompt will be causal.",
        stacklevel=3)
    names -= {PROMPT_PROMPT}
  return frozenset(names | {INPUT_INPUT, INPUT_PROMPT})


def _by_names(is_token: Array, length: int, allowed: frozenset) -> Array:
  """[B, P + T] bool -> [B, P + T, P + T] bool; the prompt is the first P."""
  positions = jnp.arange(is_token.shape[1])
  query, key = positions[:, None], positions[None, :]
  from_prompt, to_prompt = query < length, key < length
  if PROMPT_PROMPT in allowed:
    within = from_prompt & to_prompt
  elif PROMPT_PROMPT_CAUSAL in allowed:
    within = from_prompt & (key <= query)
  else:
    within = from_prompt & (key == query)
  sees = ~from_prompt | within
  if PROMPT_INPUT in allowed:
    sees = sees | (from_prompt & ~to_prompt)
  return sees & _pairs(is_token, is_token)


def _pairs(queries: Array, keys: Array) -> Array:
  """[B, T] and [B, S] bool -> [B, T, S], true where both are."""
  return queries[:, :, None] & keys[:, None, :]
