"""A prompt of one model, carried over to another model without training it.

Lester et al. 2022 (arXiv 2208.05577): models with one vocabulary embed the same
pieces in different spaces. A map that takes the source model's embeddings of
some pieces to the target model's takes a prompt along. Such maps are:

*   `Network` ("v2v-nn"): a layer that expands, a ReLU, a layer that contracts;
*   `linear` ("v2v-lin"): least squares. "lin-comb" writes the prompt as the
    smallest combination of the source's embeddings and combines the target's
    alike; that is the same map, for it gives `prompt @ pinv(source) @ target`
    either way.

At best 88.9 % of recycled prompts were above the target's zero-shot quality;
measure before you rely on one.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning import checkpoints, errors
from prompt_tuning.formats import card, npy

# ------------------------------------------------------------------- the maps


def linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """The matrix [H, G] that takes `source` nearest to `target`.

  Args:
    source: [V, H] embeddings of V pieces.
    target: [V, G] those of the same pieces in the other model.

  Returns:
    The least-squares solution, of the smallest norm if there are several.
  """
  return np.linalg.lstsq(
      source.astype(np.float64), target.astype(np.float64))[0]


class Network(nn.Module):
  """[..., H] -> [..., G] through `hidden` ReLUs."""

  hidden: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.width)(hidden)


def loss(predicted: jax.Array, target: jax.Array) -> jax.Array:
  """Half the mean squared error."""
  return jnp.mean(jnp.square(predicted - target)) / 2


def fit(
    source: np.ndarray, target: np.ndarray, hidden_scale: int = 4,
    batch_size: int = 50, epochs: int = 25, learning_rate: float = 3e-4,
) -> tuple[Network, dict[str, Any]]:
  """Trains a `Network` with Adam; always the same for the same tables.

  Args:
    source: [V, H].
    target: [V, G].
    hidden_scale: hidden units for each of G.
    batch_size: pieces a step; an epoch's last batch may be smaller.
    epochs: passes over the pieces, each in another order.
    learning_rate: of Adam.

  Returns:
    The network and its variables.

  Raises:
    UserError: if the loss is not finite.
  """
  width = target.shape[1]
  network = Network(hidden_scale * width, width)
  params = network.init(
      jax.random.PRNGKey(0), jnp.ones((1, source.shape[1])))
  optimizer = optax.adam(learning_rate)

  @jax.jit
  def step(params, state, source, target):
    value, gradient = jax.value_and_grad(
        lambda p: loss(network.apply(p, source), target))(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  state, rng = optimizer.init(params), jax.random.PRNGKey(0)
  for _ in range(epochs):
    key, rng = jax.random.split(rng)
    order = np.argsort(jax.random.uniform(key, (len(source),)))
    for start in range(0, len(source), batch_size):
      rows = order[start:start + batch_size]
      params, state, value = step(params, state, source[rows], target[rows])
  if not np.isfinite(value):
    raise errors.UserError(
        f"The recycler's loss became {float(value)}: lower --learning_rate.")
  return network, params


# -------------------------------------------------------------------- recycling

RECYCLERS = ("v2v-nn", "v2v-lin", "lin-comb")


def learn(
    source: np.ndarray, target: np.ndarray, recycler: str = "v2v-nn", **options,
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
  """Learns a map by the embeddings of pieces that both models have.

  Args:
    source: [V, H].
    target: [V, G].
    recycler: one of `RECYCLERS`.
    **options: of `fit`, for "v2v-nn".

  Returns:
    The map [..., H] -> [..., G], float32, and what share of the variance of
    `target` it leaves unexplained: 0 is a perfect map, 1 is as bad as the mean.
  """
  source, target = np.float32(source), np.float32(target)
  if recycler == "v2v-nn":
    network, params = fit(source, target, **options)

    def carry(x):
      return np.asarray(network.apply(params, np.float32(x)), np.float32)
  else:
    matrix = linear(source, target)

    def carry(x):
      return np.float32(x @ matrix)

  return carry, float(
      loss(carry(source), target) / loss(target.mean(axis=0), target))


def recycle(
    prompt: np.ndarray, source: np.ndarray, target: np.ndarray,
    recycler: str = "v2v-nn", **options,
) -> tuple[np.ndarray, float]:
  """Carries one prompt [P, H] over: [P, G], and the rest as `learn` has it."""
  carry, left = learn(source, target, recycler, **options)
  return carry(prompt), left


def write(
    path: str | os.PathLike, carried: np.ndarray, prompt_path: str,
    known: card.Card | None, source_name: str, target_name: str,
    target_fingerprint: str, settings: Mapping[str, Any],
) -> None:
  """Writes a recycled prompt, and its card of the target model.

  Args:
    path: made or replaced.
    carried: [P, G].
    prompt_path: what it was made of.
    known: that one's card.
    source_name: its model, should there be no card.
    target_name: the model that it is for.
    target_fingerprint: of that model.
    settings: of the recycler.

  Raises:
    UserError: if it cannot be written.
  """
  npy.write(path, carried)
  card.write_card(
      path, base_model=target_name, base_fingerprint=target_fingerprint,
      task=known.task if known else "", metric={},
      step=known.step if known else 0,
      settings={
          "recycled_from": os.path.basename(os.path.abspath(prompt_path)),
          "source_model": known.base_model if known else source_name,
          **settings})


def model_name(path: str) -> str:
  """The folder's name; with its parent's where it is a step's folder."""
  parent, name = os.path.split(os.path.abspath(path))
  if name.startswith("checkpoint_"):
    return os.path.join(os.path.basename(parent), name)
  return name


def read_words(path: str | os.PathLike) -> list[int]:
  """The ids of a word list, in its order.

  Args:
    path: a JSON object of ids to pieces: `{"8": "the", "12": "to"}`.

  Raises:
    UserError: if it is not that.
  """
  path = os.fspath(path)
  with checkpoints.reading(path):
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  if not isinstance(content, dict) or not all(map(str.isdecimal, content)):
    raise errors.UserError(
        f'{path} is no word list: write ids and pieces as {{"8": "the"}}.')
  return [int(number) for number in content]


def support(
    table: np.ndarray, name: str, words: Sequence[int] | None, count: int,
    offset: int,
) -> np.ndarray:
  """The embeddings that a recycler learns from.

  Args:
    table: [V, H] of a whole vocabulary.
    name: the model's, for messages.
    words: ids of pieces to choose from; None is the whole vocabulary.
    count: how many of them to take.
    offset: how many of the first to leave out: the most frequent ones.

  Returns:
    [count, H].

  Raises:
    UserError: if there are not as many, or an id has no row.
  """
  ids = range(len(table)) if words is None else words
  if not 0 <= offset <= offset + count <= len(ids) or count < 1:
    raise errors.UserError(
        f"--word_offset {offset} and --num_words {count} want words of "
        f"{len(ids):,}: lower one of them.")
  chosen = np.asarray(ids[offset:offset + count])
  if chosen.max() >= len(table):
    raise errors.UserError(
        f"The word list has the id {chosen.max()}, but {name} only "
        f"{len(table):,} embeddings: give the list of its vocabulary.")
  return table[chosen]
