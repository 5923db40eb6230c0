"""Beam search with T5X's rules, or with Hugging Face's.

Every step looks at the 2K most likely continuations of the K live hypotheses
of an example. Those that end join the K best finished ones, ranked by
log-probability over a length penalty; the K best of the others live on. At
most K of the 2K can end, so K always live on. (`beam_sampling` draws the 2K.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from prompt_tuning.decoding import Cache, StepFn, constraints
from prompt_tuning.decoding import cache as caches
from prompt_tuning.errors import UserError

# (length with EOS, alpha) -> what a log-probability is divided by; it must
# rise or fall with the length throughout.
PenaltyFn = Callable[[jax.Array | int, float], jax.Array | float]

# (log-probabilities of the next token [B * K, V], those of the live hypotheses
# [B, K], position) -> scores, beams and tokens of the 2K continuations that are
# looked at, each [B, 2K], the highest scores first.
ContinuationsFn = Callable[
    [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def t5x_brevity(length: jax.Array | int, alpha: float) -> jax.Array | float:
  """((5 + length) / 6)**alpha: T5X's, from Wu et al. 2016, section 7."""
  return ((5.0 + length) / 6.0) ** alpha


def hugging_face_length(
    length: jax.Array | int, alpha: float
) -> jax.Array | float:
  """length**alpha: Hugging Face's, alpha being its `length_penalty`."""
  return (1.0 * length) ** alpha


def likeliest(
    log_probs: jax.Array, live_log_probs: jax.Array, position: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The `ContinuationsFn` of beam search: the most likely ones."""
  del position
  batch_size, num_beams = live_log_probs.shape
  log_probs = log_probs.reshape(batch_size, num_beams, -1)  # [B, K, V]
  log_probs = log_probs + live_log_probs[:, :, None]
  best, index = lax.top_k(
      log_probs.reshape(batch_size, -1), 2 * num_beams)  # [B, 2K]
  beams, tokens = jnp.divmod(index, log_probs.shape[-1])
  return best, beams, tokens


class _State(NamedTuple):
  """K hypotheses of both kinds, best first; score -inf is an empty slot."""

  position: jax.Array  # scalar int32, how many tokens are written
  last: jax.Array  # [B, K] int32, the token to feed next
  live_tokens: jax.Array  # [B, K, max_length] int32
  live_log_probs: jax.Array  # [B, K] float32
  finished_tokens: jax.Array  # [B, K, max_length] int32
  finished_scores: jax.Array  # [B, K] float32
  improving: jax.Array  # [B] bool, whether finished ones can still change
  cache: Cache  # B * K rows


def beam_search(
    step: StepFn,
    cache: Cache,
    *,
    batch_size: int,
    max_length: int,
    eos_id: int,
    num_beams: int = 4,
    alpha: float = 0.6,
    penalty: PenaltyFn = t5x_brevity,
    rules: str = "t5x",
    continuations: ContinuationsFn = likeliest,
    early_stopping: bool | str = False,
    min_new_tokens: int = 0,
    no_repeat_ngram_size: int = 0,
    bad_words: Sequence[Sequence[int]] = (),
    forced_bos_id: int | None = None,
    forced_eos_id: int | None = None,
    start_id: int | jax.Array = 0,
    context: jax.Array | None = None,
    batch_axis: int = 0,
    alike: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """Finds the K best-scoring sequences of each example.

  A search goes on while a live hypothesis could still enter the finished ones
  of its example; so an example's result does not depend on the others in its
  batch. As in T5X, an example that finished anything by `max_length` gives its
  finished hypotheses only, and one that finished nothing gives its live ones
  with plain log-probabilities as scores.

  Hugging Face's rules, with `hugging_face_length`: a hypothesis that ends
  counts only if it is among the K, not 2K, most likely continuations; one that
  is cut off at the maximal length counts as finished; and a search ends when
  the best live hypothesis scores no better than the worst finished one. Its
  length is taken to be what it is now; with `early_stopping="never"` and a
  positive `alpha`, the maximal one; and with `early_stopping=True` a search
  ends as soon as K hypotheses have.

  One beam is not greedy search: it also keeps an ending that was second best.

  Args:
    step: see the package's docstring; called with N = B * num_beams rows.
    cache: leaves with B rows.
    batch_size: B.
    max_length: tokens to return for each hypothesis.
    eos_id: ends a hypothesis; it counts in its length and score.
    num_beams: K.
    alpha: strength of the length penalty; 0 is none, more favours longer.
    penalty: `t5x_brevity` or `hugging_face_length`.
    rules: "t5x" or "hugging_face".
    continuations: which ones every step looks at; see `beam_sampling` for
      another choice than `likeliest`.
    early_stopping: False, True or "never", of Hugging Face's rules alone.
    min_new_tokens: see `constraints.Constraints`, as for the next four.
    no_repeat_ngram_size: the same.
    bad_words: the same.
    forced_bos_id: the same.
    forced_eos_id: the same.
    start_id: fed first, not returned; one for all rows, or [B].
    context: [B, C], what a text goes on from, for n-grams and words that reach
      into it; `constraints.NO_TOKEN` is none. None: `start_id` alone.
    batch_axis: where the cache has its rows.
    alike: how many positions the cache begins with, see `cache.gather`.

  Returns:
    tokens: [B, num_beams, max_length] int32, 0 after `eos_id`, best FIRST.
      (T5X has the best last.)
    scores: [B, num_beams] float32. Where an example has fewer hypotheses than
      beams, the rest are all 0 with score -inf. (T5X: about -1e7.)

  Raises:
    UserError: for num_beams below 1 or, with Hugging Face's rules, above the
      size of the vocabulary; for other rules, or a constraint that cannot be.
  """
  if num_beams < 1:
    raise UserError(f"beam_search.num_beams is {num_beams}: give at least 1.")
  if rules not in ("t5x", "hugging_face"):
    raise UserError(
        f"beam_search.rules is {rules!r}: give 't5x' or 'hugging_face'.")
  hugging_face = rules == "hugging_face"
  _check_early_stopping(early_stopping, hugging_face)
  constrain = constraints.Constraints(
      min_new_tokens, no_repeat_ngram_size, tuple(map(tuple, bad_words)),
      forced_bos_id, forced_eos_id)
  starts = jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), (batch_size,))
  context = starts[:, None] if context is None else context
  context = jnp.repeat(context, num_beams, axis=0)  # [B * K, C]

  def can_improve(length, live_log_probs, finished_scores, improving):
    worst = finished_scores[:, -1]  # [B], -inf while a slot is empty
    if hugging_face:
      longest = early_stopping == "never" and alpha > 0
      now = live_log_probs[:, 0] / penalty(
          max_length if longest else length, alpha)
      return improving & (now > worst)
    # Log-probabilities only fall and are never above 0, so a live hypothesis
    # ends at best with the one it has now over the greatest divisor ahead.
    divisor = jnp.maximum(
        penalty(length + 1, alpha), penalty(max_length, alpha))
    reachable = live_log_probs[:, 0] / divisor  # [B]
    return (reachable >= worst) & (reachable > -jnp.inf)

  def unfinished(state: _State):
    return (state.position < max_length) & jnp.any(
        state.improving & ~complete(state))

  def complete(state: _State):
    """Which examples have K hypotheses and are to stop there: [B] bool."""
    return (early_stopping is True) & jnp.all(
        state.finished_scores > -jnp.inf, axis=1)

  def advance(state: _State) -> _State:
    logits, new_cache = step(state.last.reshape(-1, 1), state.cache)
    if hugging_face:
      _check_beams(num_beams, logits.shape[-1])
    constrain.check_vocabulary(logits.shape[-1])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))  # [B * K, V]
    if constrain != constraints.Constraints():
      written = state.live_tokens.reshape(-1, max_length)
      log_probs = constrain(
          log_probs, jnp.concatenate([context, written], axis=1),
          state.position, max_length=max_length, eos_id=eos_id)
    log_probs, beams, chosen = continuations(
        log_probs, state.live_log_probs, state.position)
    tokens = _take(state.live_tokens, beams)  # [B, 2K, max_length]
    tokens = tokens.at[:, :, state.position].set(chosen)
    length = state.position + 1
    ends = counts = chosen == eos_id  # [B, 2K]
    if hugging_face:
      ends = ends | (length == max_length)
      counts = (ends & (jnp.arange(2 * num_beams) < num_beams)
                & (state.improving & ~complete(state))[:, None])

    live_log_probs, living = lax.top_k(
        jnp.where(ends, -jnp.inf, log_probs), num_beams)
    ended_scores = log_probs / penalty(length, alpha)
    finished_scores, best = lax.top_k(
        jnp.concatenate([
            state.finished_scores,
            jnp.where(counts, ended_scores, -jnp.inf),
        ], axis=1), num_beams)
    return _State(
        position=length,
        last=_take(chosen, living),
        live_tokens=_take(tokens, living),
        live_log_probs=live_log_probs,
        finished_tokens=_take(
            jnp.concatenate([state.finished_tokens, tokens], axis=1), best),
        finished_scores=finished_scores,
        improving=can_improve(
            length, live_log_probs, finished_scores, state.improving),
        cache=caches.gather(
            new_cache, _take(beams, living), batch_axis, alike))

  shape = (batch_size, num_beams)
  final = lax.while_loop(unfinished, advance, _State(
      position=jnp.int32(0),
      last=jnp.broadcast_to(starts[:, None], shape),
      live_tokens=jnp.zeros((*shape, max_length), jnp.int32),
      # One live hypothesis: K equal ones would find everything K times.
      live_log_probs=jnp.full(shape, -jnp.inf).at[:, 0].set(0.0),
      finished_tokens=jnp.zeros((*shape, max_length), jnp.int32),
      finished_scores=jnp.full(shape, -jnp.inf),
      improving=jnp.ones(batch_size, bool),
      cache=caches.expand(cache, num_beams, batch_axis)))
  return _results(final)


def _check_early_stopping(early_stopping: bool | str, hugging_face: bool):
  if early_stopping not in (False, True, "never"):
    raise UserError(
        f"beam_search.early_stopping is {early_stopping!r}: give False, True "
        "or 'never'.")
  if early_stopping is not False and not hugging_face:
    raise UserError(
        f"beam_search.early_stopping is {early_stopping!r}, which T5X's rules "
        "have not: set beam_search.rules = 'hugging_face'.")


def _check_beams(num_beams: int, vocab_size: int):
  # With more, Hugging Face's search goes on from hypotheses that are none.
  if num_beams > vocab_size:
    raise UserError(
        f"beam_search.num_beams is {num_beams} and the vocabulary has "
        f"{vocab_size} tokens, so that a text has fewer continuations: lower "
        "NUM_BEAMS.")


def _take(x, indices):
  """x: [B, I, ...], indices: [B, J] into I -> [B, J, ...]."""
  return jax.vmap(lambda row, i: row[i])(x, indices)


def _results(state: _State) -> tuple[jax.Array, jax.Array]:
  """Finished hypotheses where an example has any, else its live ones."""
  finished = state.finished_scores[:, :1] > -jnp.inf  # [B, 1]
  scores = jnp.where(finished, state.finished_scores, state.live_log_probs)
  tokens = jnp.where(
      finished[:, :, None], state.finished_tokens, state.live_tokens)
  # Empty slots hold what the search happened to leave there.
  return jnp.where((scores > -jnp.inf)[:, :, None], tokens, 0), scores
