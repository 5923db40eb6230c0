"""What a prefix starts from, besides random numbers: words, or another prefix.

Li & Liang 2021 (arXiv 2101.00190), 7.4: with little data a prefix starts best
as the keys and values that the frozen model has for real words. A `start` is a
function (the model's module, its parameters, P) -> the table of keys and values
[P, L * 2 * K * D]. A plain prefix becomes the table; of a projected one the MLP
is fitted to it, its small table as drawn.

    prefix.ProjectedPrefix.start = @prefix_start.from_words()
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from prompt_tuning import errors, prompts
from prompt_tuning.methods import folding, prefix
from prompt_tuning.models import causal_lm

Array = jax.Array
Tree = Mapping[str, Any]
Start = Callable[[nn.Module, Tree, int], Array]

# The authors' 500 steps of Adam (their code's low-data setting).
FIT_STEPS = 500
FIT_LEARNING_RATE = 1e-4


def from_words(text: str, vocabulary) -> Start:
  """The keys and values that the frozen model has for a text.

  Args:
    text: its tokens are repeated, or cut, to the prefix's length; the authors
      have a prefix as long as the text.
    vocabulary: has `encode(text) -> list of ids`.

  Returns:
    A start, for decoder-only models.

  Raises:
    UserError: if the text has no tokens.
  """
  ids = list(vocabulary.encode(text))
  if not ids:
    raise errors.UserError(
        f"PREFIX_TEXT (from_words.text) is {text!r}, which has no tokens: give "
        "some words of the task.")

  def start(module: nn.Module, params: Tree, length: int) -> Array:
    if not isinstance(module, causal_lm.CausalLM):
      raise errors.UserError(
          "A prefix starts from words in decoder-only models alone, as with "
          "its authors: leave prompts/prefix_from_words.gin out.")
    tokens = jnp.asarray([[ids[i % len(ids)] for i in range(length)]])
    own = module.apply(
        {"params": params}, tokens, method=module.keys_and_values)
    if isinstance(own, list):  # layers that are not scanned
      own = jax.tree.map(lambda *layers: jnp.stack(layers), *own)
    return prefix.join(*(part.astype(jnp.float32) for part in own))

  return start


def count_tokens(text: str, vocabulary) -> int:
  """How many tokens a text has, for a prefix as long as the words it starts as.

  Args:
    text: see `from_words`.
    vocabulary: see `from_words`.
  """
  return len(vocabulary.encode(text))


def from_file(path: str, base_path: str) -> Start:
  """A saved prefix: a `.npy` file, or the folder of a PEFT adapter.

  Args:
    path: see `formats.prompt_file.read`.
    base_path: the weights it is for: its card is held against them, if it has
      one, and PEFT's layout is read by their sizes.

  Returns:
    A start.

  Raises:
    UserError: if it cannot be read, or is another model's.
  """
  from prompt_tuning.checkpoints import base  # keeps methods light to import
  from prompt_tuning.formats import peft, prompt_file

  if prompt_file.kind(path) == "peft":
    table = prompt_file.read(
        path, sizes=peft.Base.of(base.open_base(base_path)))
  else:
    table = prompts.prompt_load(path, base_path=base_path)
  return lambda module, params, length: jnp.asarray(table, jnp.float32)


def values(
    module: nn.Module, params: Tree, without: frozenset[str] = frozenset()
) -> dict[str, Array]:
  """What the prefixes of a model that have a `start` begin as.

  Args:
    module: a `causal_lm.CausalLM` or `t5.EncoderDecoder`.
    params: all its parameters, the prefixes' as they were drawn.
    without: paths of parameters that are not to start anew.

  Returns:
    Parameters by path; none where nothing starts from anything.

  Raises:
    UserError: if a table is not of the prefix's shape.
  """
  found = {}
  for path, made, layers in folding.prefixes(module):
    own = _below(params, path)
    if getattr(made, "start", None) is None or without & {
        f"{path}/{name}" for name in own}:
      continue
    table = jax.jit(functools.partial(made.start, module, length=made.length))(
        params)
    found |= {f"{path}/{name}": value for name, value in _started(
        made, own, table, module.config, layers).items()}
  return found


def _below(params: Tree, path: str) -> dict[str, Array]:
  for name in path.split("/"):
    params = params[name]
  return traverse_util.flatten_dict(dict(params), sep="/")


def _started(made, own, table, config, layers) -> dict[str, Array]:
  """The parameters of one prefix that start from a table."""
  count, heads, width = made.sizes(config, layers)
  wanted = (made.length, count * 2 * heads * width)
  if table.shape != wanted:
    raise errors.UserError(
        f"The prefix to start from has shape {tuple(table.shape)}, and the "
        f"model's has {wanted}: {made.length} positions x {count} layers x 2 x "
        f"{heads} heads x {width}. Set PREFIX_LENGTH to its length, or take "
        "one that was trained on a model of these sizes.")
  if isinstance(made, prefix.Prefix):
    return {"prefix": table}
  return fitted(made, own, table, config, layers)


def fitted(
    made: prefix.ProjectedPrefix, own: Mapping[str, Array], table: Array,
    config, layers: int | None = None, steps: int = FIT_STEPS,
) -> dict[str, Array]:
  """An MLP whose prefix is near a table, by mean squared error.

  Args:
    made: the projection.
    own: its parameters by path, to begin with.
    table: [P, L * 2 * K * D].
    config: the model's.
    layers: see `prefix.fold`.
    steps: of Adam.

  Returns:
    The dense layers' parameters; the small table stays.
  """
  plain = made.clone(dropout=0.0, peft_layers=False, dtype=jnp.float32)
  count = made.sizes(config, layers)[0]
  kept = {name: x for name, x in own.items() if not name.startswith("mlp_")}
  optimizer = optax.adam(FIT_LEARNING_RATE)

  def loss(trained):
    params = traverse_util.unflatten_dict(kept | trained, sep="/")
    return jnp.mean(jnp.square(
        prefix.fold(plain, params, config, count) - table))

  @jax.jit
  def fit(trained):

    def step(_, carry):
      trained, state = carry
      updates, state = optimizer.update(jax.grad(loss)(trained), state)
      return optax.apply_updates(trained, updates), state

    return jax.lax.fori_loop(
        0, steps, step, (trained, optimizer.init(trained)))[0]

  return fit({name: x for name, x in own.items() if name not in kept})
