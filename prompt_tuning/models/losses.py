"""Cross entropy from hidden states, a chunk of positions at a time.

Logits are the largest array of a training step: 4 texts of 210 tokens and a
vocabulary of 49,152 make 165 MB, and backpropagation through them needs three
of that. Here no more than a chunk's exist at once. Since the loss is a sum, a
chunk's gradient is known as soon as its logits are, so it is taken there and
then and nothing is computed twice.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
# (parameters, hidden states [B, C, H], rng or None) -> logits [B, C, V].
Head = Callable[[Any, Array, Array | None], Array]

# Rows of logits in a chunk: enough to keep a matmul busy, and otherwise so
# many that they fill 64 MB.
_LEAST_ROWS = 512
_LOGITS = 2**24


class TokenLosses(NamedTuple):
  """What is known of each token, all [B, U].

  Attributes:
    loss: float32, with its z-loss term.
    z_loss: float32, that term alone.
    correct: bool, whether the target has the largest logit.
  """

  loss: Array
  z_loss: Array
  correct: Array


def cross_entropy(
    logits: Array, targets: Array, label_smoothing: float, z_loss: float
) -> tuple[Array, Array]:
  """T5X's loss per token.

  Args:
    logits: [..., V] float32.
    targets: [...] int32.
    label_smoothing: probability spread evenly over the other V - 1 tokens;
      the loss is shifted so that a perfect prediction still gives 0.
    z_loss: weight of log(Z)^2, which keeps logits from drifting.

  Returns:
    The loss [...] with its z-loss term, and the z-loss term alone [...].
  """
  vocab_size = logits.shape[-1]
  # A sum over the one-hot target (fused by XLA) instead of a gather: the
  # gather's backward pass is a scatter into [B, T, V].
  log_z = jax.nn.logsumexp(logits, axis=-1)
  one_hot = jax.nn.one_hot(targets, vocab_size, dtype=logits.dtype)
  target_logit = jnp.sum(logits * one_hot, axis=-1)
  if label_smoothing:
    low = label_smoothing / (vocab_size - 1)
    high = 1.0 - label_smoothing
    mean_part = low * (jnp.sum(logits, axis=-1) - target_logit)
    entropy = -(high * jnp.log(high)
                + (vocab_size - 1) * low * jnp.log(low + 1e-20))
    loss = log_z - (high * target_logit + mean_part) - entropy
  else:
    loss = log_z - target_logit
  z_term = z_loss * lax.square(log_z)
  return loss + z_term, z_term


def log_likelihoods(
    head: Head,
    params: Any,
    hidden: Array,
    targets: Array,
    rng: Array | None = None,
) -> Array:
  """The log-probability of each token, to be differentiated as a whole.

  Where a loss is not their sum, a chunk's gradient must wait for it: backward,
  each chunk's logits are made again.

  Args:
    head: see `of_hidden`.
    params: see `of_hidden`.
    hidden: [B, U, H].
    targets: [B, U] int32.
    rng: see `of_hidden`.

  Returns:
    [B, U] float32.
  """
  cut, join, count = _chunks(head, params, hidden, rng)

  @jax.checkpoint
  def chunk(arguments):
    hidden, targets, rng = arguments
    return -cross_entropy(head(params, hidden, rng), targets, 0.0, 0.0)[0]

  rngs = None if rng is None else jax.random.split(rng, count)
  return join(lax.map(chunk, (cut(hidden), cut(targets), rngs)))


def _chunks(head, params, hidden, rng):
  """Functions that cut [B, U, …] into chunks and join them, and their number.
  """
  batch, length, _ = hidden.shape
  vocab_size = jax.eval_shape(head, params, hidden[:, :1], rng).shape[-1]
  rows = max(_LEAST_ROWS, _LOGITS // vocab_size)
  count = min(length, -(-batch * length // rows))
  size = -(-length // count)
  extra = count * size - length

  def cut(x):  # [B, U, ...] -> [count, B, C, ...]
    x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
    return jnp.swapaxes(x.reshape(batch, count, size, *x.shape[2:]), 0, 1)

  def join(x):
    return jnp.swapaxes(x, 0, 1).reshape(batch, -1)[:, :length]

  return cut, join, count


def of_hidden(
    head: Head,
    params: Any,
    hidden: Array,
    targets: Array,
    weights: Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    rng: Array | None = None,
) -> tuple[Array, TokenLosses]:
  """The weighted loss of all tokens.

  Args:
    head: makes logits of hidden states; a function of its arguments alone.
    params: what it is differentiated by, besides the hidden states.
    hidden: [B, U, H].
    targets: [B, U] int32.
    weights: [B, U] float32; no gradient goes to them.
    label_smoothing: see `cross_entropy`.
    z_loss: see `cross_entropy`.
    rng: for a head with dropout; each chunk draws its own.

  Returns:
    The scalar sum of loss * weight, and the losses of each token, through
    which no gradient goes.
  """
  cut, join, count = _chunks(head, params, hidden, rng)
  rngs = None if rng is None else jax.random.split(rng, count)
  total, losses = _summed(
      head, (label_smoothing, z_loss), params, cut(hidden), cut(targets),
      cut(weights), rngs)
  return total, jax.tree.map(join, losses)


def _chunk(head, options, params, hidden, targets, weights, rng):
  """The sum over a chunk, and its tokens' losses."""
  logits = head(params, hidden, rng)
  loss, z_loss = cross_entropy(logits, targets, *options)
  # XLA's argmax compares pairs one by one; two reductions take a fifth of it.
  places = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  largest = logits == jnp.max(logits, axis=-1, keepdims=True)
  first = jnp.min(jnp.where(largest, places, logits.shape[-1]), axis=-1)
  return jnp.sum(loss * weights), TokenLosses(loss, z_loss, first == targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(head, options, params, *chunks):
  """`_chunk` of [count, B, C, ...], one after the other."""

  def one(total, chunk):
    value, losses = _chunk(head, options, params, *chunk)
    return total + value, losses

  return lax.scan(one, jnp.float32(0), chunks)


def _forward(head, options, params, hidden, *others):
  """`_summed`, and its gradient by the hidden states and by what moves."""
  leaves, tree = jax.tree.flatten(params)
  moving = [leaf.value for leaf in leaves if leaf.perturbed]
  chunks = jax.tree.map(lambda leaf: leaf.value, (hidden, *others))

  def one(sums, chunk):
    hidden, *others = chunk

    def value(moving, hidden):
      rest = iter(moving)
      params = tree.unflatten(
          [next(rest) if leaf.perturbed else leaf.value for leaf in leaves])
      return _chunk(head, options, params, hidden, *others)

    total, pull, losses = jax.vjp(value, moving, hidden, has_aux=True)
    gradients, to_hidden = pull(jnp.ones_like(total))
    sums = jax.tree.map(jnp.add, sums, (total, gradients))
    return sums, (to_hidden, losses)

  zeros = jnp.float32(0), [jnp.zeros_like(x) for x in moving]
  (total, gradients), (to_hidden, losses) = lax.scan(one, zeros, chunks)
  rest = iter(gradients)
  gradients = [next(rest) if leaf.perturbed else None for leaf in leaves]
  return (total, losses), (tree.unflatten(gradients), to_hidden)


def _backward(head, options, gradients, cotangents):
  del head, options
  scale, _ = cotangents
  to_params, to_hidden = jax.tree.map(
      lambda g: (g * scale).astype(g.dtype), gradients)
  return to_params, to_hidden, None, None, None


_summed.defvjp(_forward, _backward, symbolic_zeros=True)
