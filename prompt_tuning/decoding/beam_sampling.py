"""Beam search over drawn continuations: transformers' beam sampling.

It is what `generate` does there with `do_sample=True` and several beams. A
step draws its 2K continuations, without replacement, from those of all K live
hypotheses in proportion to their probability; from there on it is beam search
with Hugging Face's rules. Probabilities are those at a temperature, of the
top k tokens, of the top p of these; and so are the scores that hypotheses
have.
"""

from collections.abc import Callable
import inspect

import jax
from jax import lax
import jax.numpy as jnp

from prompt_tuning.decoding import Cache, StepFn, beam, sampling
from prompt_tuning.errors import UserError

# Of each hypothesis, whatever top k and top p are: one may be its end.
_MIN_TOKENS = 2


def candidates(
    log_probs: jax.Array, temperature: float, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array]:
  """What may follow each hypothesis, the likeliest tokens first.

  Args:
    log_probs: [N, V] of the next token.
    temperature: divides them; above 0.
    top_k: how many tokens to keep, 2 at least; 0 keeps all.
    top_p: the fewest tokens whose probability reaches it are kept, 2 at least;
      1 keeps all.

  Returns:
    Log-probabilities, not normalised again, and tokens, each [N, C]; C is V
    or the number of `top_k`, and -inf stands for what top p has left out.
  """
  count = log_probs.shape[-1]
  if top_k:
    count = min(count, max(top_k, _MIN_TOKENS))
  scores, tokens = lax.top_k(log_probs / temperature, count)
  if top_p < 1:
    probs = jax.nn.softmax(scores)
    before = jnp.cumsum(probs, axis=-1) - probs  # of all likelier tokens
    keep = (jnp.arange(count) < _MIN_TOKENS) | (before < top_p)
    scores = jnp.where(keep, scores, -jnp.inf)
  return scores, tokens


def drawn(
    keys: jax.Array, temperature: float, top_k: int, top_p: float
) -> beam.ContinuationsFn:
  """Continuations as `beam.beam_search` takes them, drawn at random.

  The 2K largest sums of log-probabilities and Gumbel noise are 2K draws
  without replacement (Kool et al. 2019, arXiv 1903.06059).

  Args:
    keys: a JAX random key for each example, B of them.
    temperature: see `candidates`.
    top_k: see `candidates`.
    top_p: see `candidates`.
  """

  def continuations(log_probs, live_log_probs, position):
    batch_size, num_beams = live_log_probs.shape
    scores, tokens = candidates(log_probs, temperature, top_k, top_p)
    count = scores.shape[-1]  # C
    scores = scores.reshape(batch_size, num_beams, count)
    scores = (scores + live_log_probs[:, :, None]).reshape(batch_size, -1)
    noise = jax.vmap(lambda key: jax.random.gumbel(
        jax.random.fold_in(key, position), scores.shape[1:]))(keys)
    _, index = lax.top_k(scores + noise, 2 * num_beams)  # [B, 2K]
    scores, order = lax.top_k(_at(scores, index), 2 * num_beams)
    index = _at(index, order)
    return (scores, index // count,
            _at(tokens.reshape(batch_size, -1), index))

  return continuations


def beam_sample(
    step: StepFn,
    cache: Cache,
    rng: jax.Array,
    *,
    batch_size: int,
    num_beams: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    alpha: float = 1.0,
    penalty: Callable[..., jax.Array | float] = beam.hugging_face_length,
    context: jax.Array | None = None,
    batch_axis: int = 0,
    alike: int = 0,
    **options,
) -> tuple[jax.Array, jax.Array]:
  """The K best of the hypotheses that were drawn, for each example.

  What an example draws depends on `rng`, its number in the batch, the
  position and its own logits, as in `sampling.sample`.

  Args:
    step: see the package's docstring; called with N = B * num_beams rows.
    cache: leaves with B rows.
    rng: a JAX random key, or one for each row: [B] keys.
    batch_size: B.
    num_beams: K, at least 2; with one, transformers' is plain sampling.
    temperature: see `candidates`. Near 0 it is beam search.
    top_k: see `candidates`.
    top_p: see `candidates`.
    alpha: see `beam.beam_search`; so are all others.
    penalty: the same.
    context: the same.
    batch_axis: the same.
    alike: the same.
    **options: the same.

  Returns:
    tokens: [B, num_beams, max_length] int32, 0 after `eos_id`, best first.
    scores: [B, num_beams] float32; -inf where an example has fewer hypotheses
      than beams. They are of the probabilities that were drawn from.

  Raises:
    UserError: for a number out of range, or an option that there is not.
  """
  sampling.check(temperature, top_k, top_p, name="beam_sample")
  if temperature < sampling.MIN_TEMPERATURE:
    raise UserError(
        f"beam_sample.temperature is {temperature}: give a number above 0, or "
        "for the likeliest continuations a beam search, such as "
        "models/decoding/nlg.gin.")
  if num_beams < 2:
    raise UserError(
        f"beam_sample.num_beams is {num_beams}: give 2 or more, or for one "
        "models/decoding/nucleus_sampling.gin.")
  known = inspect.signature(beam.beam_search).parameters
  for name in options.keys() - known.keys():
    raise UserError(f"beam_sample has no parameter {name!r}.")
  return beam.beam_search(
      step, cache, batch_size=batch_size, num_beams=num_beams, alpha=alpha,
      penalty=penalty, rules="hugging_face", context=context,
      batch_axis=batch_axis, alike=alike, continuations=drawn(
          sampling.row_keys(rng, batch_size), temperature, top_k, top_p),
      **options)


def _at(x: jax.Array, indices: jax.Array) -> jax.Array:
  """x: [B, I], indices: [B, J] into I -> [B, J]."""
  return jnp.take_along_axis(x, indices, axis=1)
