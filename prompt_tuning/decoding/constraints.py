"""What a search may write next: bans and forced tokens, as transformers has it.

They act on log-probabilities, which are not normalised again, in transformers'
order: repeated n-grams, unwanted words, the least length, the forced first and
last tokens. All are functions of what each row has written so far.
"""

from collections.abc import Sequence
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError

Array = jax.Array

# Stands where a context has no token; it equals none, and no n-gram has it.
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Constraints:
  """Which tokens may follow; the default allows all of them.

  Attributes:
    min_new_tokens: `eos_id` is not among so many first tokens. (transformers'
      `min_length` counts what a decoder begins with too: one more for an
      encoder-decoder.)
    no_repeat_ngram_size: no n-gram of this size is written twice, context
      included; 0 allows all.
    bad_words: sequences of ids that are never completed; one that is `eos_id`
      alone is left out, as there.
    forced_bos_id: the first token, at no cost.
    forced_eos_id: the last token of a text that is cut off, at no cost.
  """

  min_new_tokens: int = 0
  no_repeat_ngram_size: int = 0
  bad_words: tuple[tuple[int, ...], ...] = ()
  forced_bos_id: int | None = None
  forced_eos_id: int | None = None

  def __post_init__(self):
    for name in ("min_new_tokens", "no_repeat_ngram_size"):
      value = getattr(self, name)
      if type(value) is not int or value < 0:
        raise UserError(
            f"beam_search.{name} is {value!r}: give a whole number, 0 for "
            "none.")
    for word in self.bad_words:
      if not word or any(type(i) is not int or i < 0 for i in word):
        raise UserError(
            f"beam_search.bad_words has {list(word)!r}: give each word as a "
            "list of token ids, as [[628], [198]].")

  def check_vocabulary(self, size: int) -> None:
    """Refuses ids that a vocabulary of `size` tokens has not.

    Raises:
      UserError: naming the first one.
    """
    named = [("bad_words", i) for word in self.bad_words for i in word]
    named += [(name, getattr(self, name))
              for name in ("forced_bos_id", "forced_eos_id")
              if getattr(self, name) is not None]
    for name, number in named:
      if not 0 <= number < size:
        raise UserError(
            f"beam_search.{name} has the token {number}, and the model's "
            f"vocabulary {size}: give ids of the model's tokenizer.")

  def __call__(
      self, log_probs: Array, history: Array, position: Array, *,
      max_length: int, eos_id: int,
  ) -> Array:
    """Log-probabilities with -inf for what may not follow.

    Args:
      log_probs: [N, V] of the next token.
      history: [N, C + max_length], the context and then the `position` tokens
        that are written; behind them anything.
      position: scalar, how many tokens are written.
      max_length: how many will be at most.
      eos_id: ends a text.

    Returns:
      [N, V].
    """
    end = history.shape[1] - max_length + position
    if self.no_repeat_ngram_size:
      banned = repeated(
          history, end, self.no_repeat_ngram_size, log_probs.shape[1])
      log_probs = jnp.where(banned, -jnp.inf, log_probs)
    words = [word for word in self.bad_words if tuple(word) != (eos_id,)]
    if words:
      banned = completed(history, end, words, log_probs.shape[1])
      log_probs = jnp.where(banned, -jnp.inf, log_probs)
    if self.min_new_tokens:
      too_early = position < self.min_new_tokens
      log_probs = log_probs.at[:, eos_id].set(
          jnp.where(too_early, -jnp.inf, log_probs[:, eos_id]))
    for token, place in ((self.forced_bos_id, 0),
                         (self.forced_eos_id, max_length - 1)):
      if token is not None:
        only = jnp.full_like(log_probs, -jnp.inf).at[:, token].set(0.0)
        log_probs = jnp.where(position == place, only, log_probs)
    return log_probs


def repeated(history: Array, end: Array, size: int, vocab_size: int) -> Array:
  """Which tokens would complete an n-gram that is there already.

  Args:
    history: [N, S] of which the first `end` are written; `NO_TOKEN` is none.
    end: scalar.
    size: of the n-grams.
    vocab_size: V.

  Returns:
    [N, V] bool.
  """
  rows, length = history.shape
  count = length - size + 1
  if count < 1:
    return jnp.zeros((rows, vocab_size), bool)
  last = _last(history, end, size - 1)  # [N, size - 1]
  # The n-gram that begins at s is written if all of it stands before `end`.
  matches = jnp.broadcast_to(
      (jnp.arange(count) + size <= end) & (end >= size), (rows, count))
  for i in range(size - 1):
    start = history[:, i:i + count]
    matches &= (start == last[:, i:i + 1]) & (start != NO_TOKEN)
  tokens = history[:, size - 1:]
  tokens = jnp.where(matches & (tokens != NO_TOKEN), tokens, vocab_size)
  return jnp.zeros((rows, vocab_size), bool).at[
      jnp.arange(rows)[:, None], tokens].set(True, mode="drop")


def completed(
    history: Array, end: Array, words: Sequence[Sequence[int]],
    vocab_size: int,
) -> Array:
  """Which tokens would complete one of the words: [N, V] bool."""
  alone = np.zeros(vocab_size, bool)
  alone[[word[0] for word in words if len(word) == 1]] = True
  banned = jnp.broadcast_to(alone, (len(history), vocab_size))
  for word in words:
    *start, final = word
    if not start:
      continue
    last = _last(history, end, len(start))
    matches = jnp.all(last == jnp.array(start), axis=1) & (end >= len(start))
    banned = banned.at[:, final].max(matches)
  return banned


def _last(history: Array, end: Array, count: int) -> Array:
  """The last `count` written tokens, where there are so many: [N, count]."""
  if history.shape[1] < count:
    return jnp.full((len(history), count), NO_TOKEN)
  return lax.dynamic_slice_in_dim(history, end - count, count, axis=1)


def context_of(tokens: Array, visible: Array) -> Array:
  """The texts [B, T], moved so that what is decoded adjoins their ends."""
  length = tokens.shape[1]
  kept = jnp.where(visible, tokens, NO_TOKEN)
  last = length - 1 - jnp.argmax(visible[:, ::-1], axis=1)  # [B]
  return jax.vmap(jnp.roll)(kept, length - 1 - last)
