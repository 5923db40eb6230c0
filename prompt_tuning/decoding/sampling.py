"""Sampling with temperature, top-k and top-p.

The logits are processed in this order, which is Hugging Face's: divided by the
temperature, cut to the top k, cut to the top p of what top-k left.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.decoding import Cache, StepFn, greedy
from prompt_tuning.decoding import cache as caches
from prompt_tuning.errors import UserError

# Below it a temperature counts as 0, as in T5X: dividing by less could reach
# infinity in float32, and the difference between two infinities is no number.
MIN_TEMPERATURE = 1e-4


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Sets logits [..., V] below the k-th largest to -inf; ties with it stay."""
  if k >= logits.shape[-1]:
    return logits
  smallest_kept = lax.top_k(logits, k)[0][..., -1:]
  return jnp.where(logits < smallest_kept, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Keeps the fewest most likely tokens whose probability reaches p.

  The token that crosses p is kept, so one always is. Of equally likely tokens
  those with lower ids come first.

  Args:
    logits: [..., V].
    p: above 0, below 1.

  Returns:
    [..., V] with -inf for the tokens left out.
  """
  order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
  probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  before = jnp.cumsum(probs, axis=-1) - probs  # of all likelier tokens
  # Without the first clause rounding could leave nothing for a tiny p.
  keep = (jnp.arange(probs.shape[-1]) == 0) | (before < p)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(
      jnp.take_along_axis(keep, rank, axis=-1), logits, -jnp.inf)


def process(
    logits: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
  """The logits [..., V] that are sampled from; arguments as in `sample`."""
  logits = logits / temperature
  if top_k:
    logits = keep_top_k(logits, top_k)
  if top_p < 1:
    logits = keep_top_p(logits, top_p)
  return logits


def sample(
    step: StepFn,
    cache: Cache,
    rng: jax.Array,
    *,
    batch_size: int,
    max_length: int,
    eos_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    start_id: int | jax.Array = 0,
    batch_axis: int = 0,
    stop_table: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws each token from the model's processed distribution.

  The draw of a token depends on `rng`, the row's number in the batch, the
  sample's number, the position, and that row's own logits; so the same seed
  gives the same bits, and neither the batch size, the other rows,
  `num_samples` nor `max_length` change what a row draws. (Where the model's
  logits differ in their last bits between batch sizes, a draw may too. JAX's
  `rbg` keys do not give this independence; its default keys do.) Batches that
  shall not repeat each other's draws need an `rng` each; with a key for every
  row, its number has no part either, and rows may come in any order.

  Args:
    step: see the package's docstring; called with N = B * num_samples rows.
    cache: leaves with B rows.
    rng: a JAX random key, or one for each row: [B] keys.
    batch_size: B.
    max_length: tokens to return for each row.
    eos_id: ends a row.
    temperature: divides the logits; 0 (or less than 1e-4) is greedy search,
      whatever `top_k` and `top_p` are.
    top_k: how many of the most likely tokens to keep; 0 keeps all.
    top_p: probability that the kept tokens must reach; 1 keeps all.
    num_samples: independent draws for each row.
    start_id: fed first, not returned; one for all rows, or [B].
    batch_axis: where the cache has its rows.
    stop_table: see `greedy.decode`.

  Returns:
    tokens: [B, num_samples, max_length] int32, 0 after a row's end, in the
      order in which they were drawn.
    scores: [B, num_samples] float32, sums of the model's own
      log-probabilities, before any processing. (T5X's default is after it.)

  Raises:
    UserError: for a temperature, top_k, top_p or num_samples out of range.
  """
  check(temperature, top_k, top_p, num_samples)
  rows = batch_size * num_samples
  keys = jax.vmap(
      lambda key: jax.vmap(lambda number: jax.random.fold_in(key, number))(
          jnp.arange(num_samples)))(row_keys(rng, batch_size))
  keys = keys.reshape(rows, *keys.shape[2:])

  def draw(logits, position):
    def draw_row(key, row):
      return jax.random.categorical(jax.random.fold_in(key, position), row)
    return jax.vmap(draw_row)(
        keys, process(logits, temperature, top_k, top_p))

  if jnp.ndim(start_id):
    start_id = jnp.repeat(start_id, num_samples)
  tokens, scores = greedy.decode(
      step, caches.expand(cache, num_samples, batch_axis),
      greedy.most_likely if temperature < MIN_TEMPERATURE else draw,
      rows=rows, max_length=max_length, eos_id=eos_id, start_id=start_id,
      stop_table=stop_table)
  return (
      tokens.reshape(batch_size, num_samples, max_length),
      scores.reshape(batch_size, num_samples))


def row_keys(rng, batch_size: int):
  """A key for each row; keys are arrays of numbers, or of a type of their own.
  """
  one = 0 if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else 1
  if rng.ndim > one:
    return rng
  return jax.vmap(lambda row: jax.random.fold_in(rng, row))(
      jnp.arange(batch_size))


def check(
    temperature: float, top_k: int, top_p: float, num_samples: int = 1,
    name: str = "sample",
) -> None:
  """Raises `UserError` for the first argument that is out of range."""
  if not 0 <= temperature < float("inf"):
    raise UserError(
        f"{name}.temperature is {temperature}: give a number from 0 (greedy) "
        "up.")
  if not isinstance(top_k, int) or top_k < 0:
    raise UserError(
        f"{name}.top_k is {top_k}: give a whole number of tokens to keep, or "
        "0 to keep all.")
  if not 0 < top_p <= 1:
    raise UserError(
        f"{name}.top_p is {top_p}: give a probability above 0 and at most 1 "
        "(1 keeps all tokens).")
  if num_samples < 1:
    raise UserError(
        f"{name}.num_samples is {num_samples}: give at least 1.")
