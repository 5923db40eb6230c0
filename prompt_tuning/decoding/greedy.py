"""Decoding row by row: the loop itself, and greedy search as its plainest use.

`decode` runs the loop for any rule that chooses one token per row; greedy
search and sampling are such rules. Beam search compares rows with each other
and has its own loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.decoding import Cache, StepFn

# (logits [N, V] float32, position scalar int32) -> tokens [N] int32.
ChooseFn = Callable[[jax.Array, jax.Array], jax.Array]


class _State(NamedTuple):
  position: jax.Array  # scalar int32, how many tokens are written
  last: jax.Array  # [N] int32, the token to feed next
  tokens: jax.Array  # [N, max_length] int32
  scores: jax.Array  # [N] float32
  ended: jax.Array  # [N] bool
  stopping: jax.Array  # [N] int32, states of the stop table
  cache: Cache


def decode(
    step: StepFn,
    cache: Cache,
    choose: ChooseFn,
    *,
    rows: int,
    max_length: int,
    eos_id: int,
    start_id: int | jax.Array = 0,
    stop_table: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Runs `step` until every row has ended or `max_length` is reached.

  Args:
    step: see the package's docstring.
    cache: leaves with N rows.
    choose: the rule that picks a token of each row.
    rows: N.
    max_length: of the result; a row may be cut off there without `eos_id`.
    eos_id: ends a row; it is part of the row's tokens and score.
    start_id: fed first, not returned; one for all rows, or [N].
    stop_table: of texts that end a row too, see `stops.stop_table`.

  Returns:
    tokens: [N, max_length] int32, 0 after the row's end.
    scores: [N] float32, the sum of the model's log-probabilities of a row's
      tokens (of the logits as they come from `step`, whatever `choose` does).
  """

  def unfinished(state: _State):
    return (state.position < max_length) & ~jnp.all(state.ended)

  def advance(state: _State) -> _State:
    logits, new_cache = step(state.last[:, None], state.cache)
    logits = logits.astype(jnp.float32)  # [N, V]
    chosen = choose(logits, state.position).astype(jnp.int32)  # [N]
    log_probs = jax.nn.log_softmax(logits)
    gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
    written = jnp.where(state.ended, 0, chosen)
    ended, stopping = state.ended | (written == eos_id), state.stopping
    if stop_table is not None:
      stopping = jnp.asarray(stop_table)[stopping, chosen]
      ended = ended | (stopping == stop_table.shape[0] - 1)
    return _State(
        position=state.position + 1,
        last=written,
        tokens=state.tokens.at[:, state.position].set(written),
        scores=state.scores + jnp.where(state.ended, 0.0, gained),
        ended=ended,
        stopping=stopping,
        cache=new_cache)

  final = lax.while_loop(unfinished, advance, _State(
      position=jnp.int32(0),
      last=jnp.full(rows, start_id, jnp.int32),
      tokens=jnp.zeros((rows, max_length), jnp.int32),
      scores=jnp.zeros(rows, jnp.float32),
      ended=jnp.zeros(rows, bool),
      stopping=jnp.zeros(rows, jnp.int32),
      cache=cache))
  return final.tokens, final.scores


def most_likely(logits: jax.Array, position: jax.Array) -> jax.Array:
  """The greedy rule; of equally likely tokens, the one with the lowest id."""
  del position
  return jnp.argmax(logits, axis=-1)


def greedy(
    step: StepFn,
    cache: Cache,
    *,
    batch_size: int,
    max_length: int,
    eos_id: int,
    start_id: int | jax.Array = 0,
    stop_table: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Takes the most likely token at every position.

  Args:
    step: see the package's docstring; called with N = B rows.
    cache: leaves with B rows.
    batch_size: B.
    max_length: tokens to return for each row.
    eos_id: ends a row.
    start_id: fed first, not returned; one for all rows, or [B].
    stop_table: see `decode`.

  Returns:
    tokens: [B, max_length] int32, 0 after the row's end.
    scores: [B] float32, sums of log-probabilities.
  """
  return decode(
      step, cache, most_likely, rows=batch_size, max_length=max_length,
      eos_id=eos_id, start_id=start_id, stop_table=stop_table)
