"""Prompts and their initialisers.

A prompt is a learned [P, H] array that stands among the embedded tokens of a
frozen model (Lester et al. 2021, arXiv 2104.08691). An initialiser is a
function (rng, shape) -> [P, H]; the ones here are closures over an embedding
table, a text or a file, under the names that users of the original bind:

    prompts.Prompt.prompt_init = @prompt_init/prompts.from_embedded_list()
    prompt_init/prompts.from_embedded_list.embeddings = \\
        @prompt_init/prompts.t5x_load()

Where a prompt is put among the tokens is `prompt_tuning.train.prompts`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import os
from typing import NamedTuple
import warnings

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors

Array = jax.Array
Initializer = Callable[..., Array]


class Instance(NamedTuple):
  """What is known of each example besides the tokens that the model embeds.

  Attributes:
    is_input: [B, T] bool, which of the model's tokens are inputs, neither
      targets nor padding; None: those above 0, which T5's inputs are.
    encoding: [B, E] float32, of the example by another network; None if there
      is none.
    tokens: [B, S] ids of the example's text in that network's vocabulary, if
      it is trained too.
    mask: [B, S] bool, False where they are padding.
  """

  is_input: Array | None = None
  encoding: Array | None = None
  tokens: Array | None = None
  mask: Array | None = None

  @classmethod
  def of_batch(
      cls, batch: Mapping[str, Array], is_input: Array | None = None
  ) -> "Instance":
    """What a batch says of its examples, see `data.encodings`."""
    return cls(is_input, *(batch.get(f"instance_{name}") for name in (
        "encodings", "tokens", "mask")))


def takes_instance(module: nn.Module) -> bool:
  """Whether a prompt's module makes each example its own: takes `instance`."""
  return "instance" in inspect.signature(type(module).__call__).parameters


def called(
    module: nn.Module, x: Array, x_embed: Array, instance: Instance | None
) -> Array:
  """What a prompt's module gives; `instance` is for those that take one."""
  if takes_instance(module):
    return module(x, x_embed, instance=instance)
  return module(x, x_embed)


def expand_to_batch(x: Array, y: Array) -> Array:
  """Repeats `x` once per example of `y`: [...] -> [B, ...]."""
  return jnp.broadcast_to(x[None], (y.shape[0], *x.shape))


def np_load(path: str, restore_dtype=None) -> np.ndarray:
  """Reads a `.npy` file, headers checked first; see `formats.npy.read`."""
  from prompt_tuning.formats import npy  # keeps this module light to import

  array = npy.read(path)
  return array if restore_dtype is None else array.astype(restore_dtype)


def prompt_load(
    path: str, variable_path: str | None = None, base_path: str | None = None
) -> np.ndarray:
  """Reads a prompt [P, H] of any format; see `formats.prompt_file.read`.

  Args:
    path: a `.npy` file, a PEFT adapter's folder, or a T5X checkpoint.
    variable_path: which variable of a T5X checkpoint; its only prompt if None.
    base_path: the weights that it is going to stand in front of, to hold its
      card against, if it has one; None does not look at the card.

  Raises:
    UserError: if it cannot be read, is not what its card describes, or was
      trained on another base.
  """
  from prompt_tuning.formats import prompt_file  # as above

  prompt = prompt_file.read(path, variable_path)
  if base_path is not None:
    _check_card(path, base_path)
  return prompt


def _check_card(path: str, base_path: str):
  from prompt_tuning.formats import card

  if os.path.exists(card.card_path(path)):  # else nothing says of which base
    card.check(path, _fingerprint(base_path), base_path)


@functools.lru_cache(maxsize=1)  # as `t5x_load`
def _fingerprint(base_path: str) -> str:
  from prompt_tuning.checkpoints import base

  return base.fingerprint(base_path)


@functools.lru_cache(maxsize=2)  # gin asks again for every trace
def t5x_load(
    checkpoint_path: str, variable_path: str, restore_dtype=None
) -> np.ndarray:
  """Reads one array of base weights, by its T5X path.

  Args:
    checkpoint_path: see `checkpoints.base.open_base`.
    variable_path: such as `token_embedder/embedding`; `target/` may lead.
    restore_dtype: what to convert to; the file's own dtype if None.

  Returns:
    The array.

  Raises:
    UserError: if the checkpoint or the array in it cannot be read.
  """
  from prompt_tuning.checkpoints import base

  return base.read_variable(checkpoint_path, variable_path, restore_dtype)


def from_array(prompt: np.ndarray) -> Initializer:
  """The initialiser that gives `prompt` [P, H] itself.

  Args:
    prompt: [P, H].

  Returns:
    An initialiser that raises `UserError` on any other shape.
  """
  prompt = np.asarray(prompt)

  def initialize(rng, shape):
    del rng
    if prompt.shape != tuple(shape):
      raise errors.UserError(
          f"The prompt to start from has shape {prompt.shape} but the model "
          f"wants {tuple(shape)}: set PROMPT_LENGTH (of a "
          "prefix, PREFIX_LENGTH) to the file's length, or take one that was "
          "trained on a model of this width.")
    return _float32(prompt)

  return initialize


def from_files(
    paths: Sequence[str], base_path: str | None = None
) -> dict[str, Initializer]:
  """An initialiser for each of some files, by short names, for a sweep.

  Args:
    paths: see `prompt_load`.
    base_path: see `prompt_load`.

  Raises:
    UserError: if there are none, or one cannot be read.
  """
  from prompt_tuning.formats import prompt_file  # as above

  if isinstance(paths, str) or not paths:
    raise errors.UserError(
        f"PROMPT_FILES is {paths!r}: name the prompts in a list, as in "
        "['qnli.npy', 'mnli.npy'].")
  return {name: from_array(prompt_load(path, base_path=base_path))
          for name, path in zip(prompt_file.short_names(paths), paths)}


def from_sample_of_embeddings(
    embeddings: np.ndarray, population_size: int | None = None
) -> Initializer:
  """Each prompt position starts as a random row of the embedding table.

  Args:
    embeddings: [V, H].
    population_size: draw from this many first rows (in a SentencePiece
      vocabulary, the most common pieces); all V if None.

  Returns:
    An initialiser. It draws without replacement as long as the population
    lasts.

  Raises:
    UserError: if `population_size` is not positive.
  """
  embeddings = np.asarray(embeddings)
  rows = len(embeddings)
  if population_size is not None and population_size <= 0:
    raise errors.UserError(
        "from_sample_of_embeddings.population_size must be positive, not "
        f"{population_size}; leave it out to sample the whole table.")
  if population_size is not None and population_size > rows:
    warnings.warn(
        f"population_size {population_size} is more than the {rows} rows of "
        "the embedding table; sampling all of them.", stacklevel=2)
  population = min(population_size or rows, rows)

  def initialize(rng, shape):
    length, features = shape
    _check_width(embeddings, features)
    replace = length > population
    if replace:
      warnings.warn(
          f"A prompt of length {length} from a population of {population}: "
          "rows repeat.", stacklevel=2)
    chosen = jax.random.choice(rng, population, (length,), replace)
    return jnp.take(_float32(embeddings[:population]), chosen, axis=0)

  return initialize


# The original's README binds it by this name.
from_samples_of_embeddings = from_sample_of_embeddings


def from_embedded_list(
    embeddings: np.ndarray,
    vocab,
    texts: Sequence[str],
    initializer: Initializer = nn.initializers.uniform(),
) -> Initializer:
  """Position i starts as the mean embedding of the pieces of `texts[i]`.

  With the task's class labels as texts this is the initialisation that the
  paper found best (section 3.2).

  Args:
    embeddings: [V, H].
    vocab: has `encode(text) -> list of ids`.
    texts: one text per position; positions beyond them come from
      `initializer`.
    initializer: for the rest.

  Returns:
    An initialiser. It raises `UserError` on a table of another width or of
    another vocabulary, and on a text that has no pieces.
  """
  embeddings = np.asarray(embeddings)

  def initialize(rng, shape):
    length, features = shape
    _check_width(embeddings, features)
    if len(texts) > length:
      warnings.warn(
          f"{len(texts)} texts for a prompt of length {length}: the last "
          f"{len(texts) - length} are not used.", stacklevel=2)
    rows = [
        _embedded(embeddings, _pieces(
            vocab, text, "from_embedded_list.texts (CLASS_LABELS)")).mean(0)
        for text in texts[:length]
    ]
    return _with_first_rows(initializer(rng, shape), rows)

  return initialize


def from_embedded_string(
    embeddings: np.ndarray,
    vocab,
    text: str,
    initializer: Initializer = nn.initializers.uniform(),
    repeat: bool = False,
) -> Initializer:
  """Position i starts as the embedding of the i-th piece of `text`.

  Args:
    embeddings: [V, H].
    vocab: has `encode(text) -> list of ids`.
    text: cut to the prompt's length; if shorter, the rest comes from
      `initializer`.
    initializer: for the rest.
    repeat: start a short text again until the prompt is full, as Hugging
      Face PEFT does, instead of asking `initializer`.

  Returns:
    An initialiser. It raises `UserError` on a table of another width or of
    another vocabulary, and on a text without pieces that is to repeat.
  """
  embeddings = np.asarray(embeddings)

  def initialize(rng, shape):
    length, features = shape
    _check_width(embeddings, features)
    ids = (_pieces(vocab, text, "from_embedded_string.text (PROMPT_TEXT)")
           if repeat else vocab.encode(text))
    if len(ids) > length:
      warnings.warn(
          f"The text has {len(ids)} pieces, the prompt length is {length}: "
          "the text is cut.", stacklevel=2)
    if repeat:
      return _embedded(embeddings, [ids[i % len(ids)] for i in range(length)])
    return _with_first_rows(
        initializer(rng, shape), _embedded(embeddings, ids[:length]))

  return initialize


def _with_first_rows(prompt: Array, rows) -> Array:
  if not len(rows):
    return prompt
  return prompt.at[:len(rows)].set(jnp.stack(rows))


def _pieces(vocab, text: str, place: str) -> list[int]:
  """The ids of a text that must have some: the mean of none is NaN."""
  ids = vocab.encode(text)
  if not len(ids):
    raise errors.UserError(
        f"The text {text!r} in {place} has no pieces in the vocabulary: leave "
        "it out.")
  return ids


def _embedded(embeddings: np.ndarray, ids: Sequence[int]) -> Array:
  """Rows of the table, or a sentence if there are too few."""
  if max(ids, default=0) >= len(embeddings):
    raise errors.UserError(
        f"The text to start the prompt from has the piece {max(ids)} but the "
        f"embedding table only {len(embeddings)} rows: give the vocabulary of "
        "the model that the table is from.")
  return _float32(embeddings[np.asarray(ids, int)])


def _float32(rows: np.ndarray) -> Array:
  """Rows of a table, whatever its dtype; a prompt is always float32."""
  return jnp.asarray(rows.astype(np.float32))


def _check_width(embeddings: np.ndarray, features: int):
  if embeddings.shape[-1] != features:
    raise errors.UserError(
        f"The embedding table has shape {embeddings.shape} but the prompt "
        f"needs width {features}: initialise from the model's own table "
        "(INITIAL_CHECKPOINT_PATH or EMBEDDING_FILE).")


class Prompt(nn.Module):
  """A task-level prompt: one parameter `prompt` [P, H] in float32.

  Its logical axes are replicated by the default rules, so that any one host
  can write it to a file.
  """

  length: int
  prompt_init: Initializer = nn.initializers.uniform()
  axis_names: tuple[str, str] = ("prompt", "prompt_embed")
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T] and their embeddings [B, T, H] -> prompt [P, H]."""
    del x
    prompt = partitioning.param_with_axes(
        "prompt", self.prompt_init, (self.length, x_embed.shape[-1]),
        axes=self.axis_names)
    return prompt.astype(self.dtype)


class InferenceOnlyPrompt(nn.Module):
  """A prompt that is a constant of the program and not a parameter."""

  length: int
  embed_dim: int
  prompt_init: Initializer
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self._prompt = self.prompt_init(
        jax.random.PRNGKey(0), (self.length, self.embed_dim))

  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T] and their embeddings [B, T, H] -> prompt [P, H]."""
    return jnp.asarray(self._prompt, self.dtype)
