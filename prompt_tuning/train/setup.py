"""From settings to arrays on devices: the start of training, eval and infer."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prompt_tuning import checkpoints, errors, formats
from prompt_tuning.checkpoints import base, base_config
from prompt_tuning.formats import card
from prompt_tuning.methods import adapter, heads, prefix_start
from prompt_tuning.models import quantized
from prompt_tuning.train import adafactor, settings, sharding
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

Tree = Any

# DeepSeek-Coder 7B v1.5 has over 2,000 in 102,400.
_MOST_SPARE_ROWS, _MOST_SPARE_SHARE = 1024, 1 / 32


@dataclasses.dataclass
class Weights:
  """Parameters on their devices, and what is known of their origin.

  Attributes:
    trainable: float32 tree; None once a state has taken it.
    frozen: tree in the dtype that was asked for.
    trainable_shardings: the trainable tree's shardings.
    base_step: the step that the run counts from.
    base_name: what the base was read from; "" if from scratch.
    base_fingerprint: sha256 of its embedding table; "" if from scratch.
    initialized: paths of the trainable parameters that the base lacks.
    source: the base's files, opened; None if from scratch.
  """

  trainable: Tree | None
  frozen: Tree
  trainable_shardings: Tree
  base_step: int
  base_name: str
  base_fingerprint: str
  initialized: tuple[str, ...] = ()
  source: checkpoints.BaseWeights | None = None


def prepare(
    model,
    restore: settings.RestoreCheckpointConfig,
    trainable_patterns: Sequence[str],
    mesh: jax.sharding.Mesh,
    rng: jax.Array,
    prompt_file: str | None = None,
    given: Tree | None = None,
) -> Weights:
  """Loads the base and initialises what it does not hold.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    restore: where the base is.
    trainable_patterns: see `state.split`.
    mesh: devices.
    rng: for the initialisers.
    prompt_file: where the prompt comes from, to check its card against the
      base.
    given: trained parameters, instead of initial ones.

  Returns:
    The weights.

  Raises:
    UserError: if a frozen parameter is in no checkpoint, the prompt was
      trained on another base, a vocabulary does not fit the table, or the
      patterns leave out a part of what is trained.
  """
  shapes, axes = model.abstract()
  rows = shapes["token_embedder"]["embedding"].shape[0]
  for vocabulary in (model.input_vocabulary, model.output_vocabulary):
    check_vocabulary(vocabulary, rows)
  shardings = sharding.param_shardings(axes, shapes, mesh)
  placed = jax.tree.map(
      lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
      shapes, shardings)
  trainable, frozen = state_lib.split(placed, trainable_patterns)
  source = base.open_base(restore.path) if restore.path else None
  base_config.check(source, getattr(model.module, "config", None))
  fingerprint = base.fingerprint(restore.path) if source else ""
  if source is None and frozen:
    raise errors.UserError(
        "INITIAL_CHECKPOINT_PATH is not set, but "
        f"{len(state_lib.flatten(frozen))} parameters are frozen: give the "
        "base weights, or train everything with TRAINABLE_REGEX = ['.*'].")
  if prompt_file:
    card.check(prompt_file, fingerprint, restore.path)
  flat = state_lib.flatten(trainable)
  known = {
      path for path in flat if source and (
          path in source.arrays
          or path.replace("/layers/", "/layers_0/") in source.arrays)}
  adapter.check_frozen(model.delta, known)
  given = _encoder_weights(model) | state_lib.flatten(given or {})
  for path in given:
    if path not in flat:
      raise errors.UserError(
          f"TRAINABLE_REGEX = {list(trainable_patterns)} leaves out {path}, "
          "which is trained with the rest of the prompt: use "
          "['.*/prompt/.*'].")
  values = initializer(
      model, [p for p in flat if p not in known and p not in given],
      shardings)(rng)
  values |= {
      # Copied: the first step uses them up, and an encoder keeps its weights.
      path: jax.device_put(jnp.array(array, jnp.float32), flat[path].sharding)
      for path, array in given.items()}
  wanted = {
      path: _as(spec, jnp.float32) for path, spec in flat.items()
      if path in known and path not in given}
  wanted |= {
      path: _frozen(path, spec, restore.dtype)
      for path, spec in state_lib.flatten(frozen).items()}
  if wanted:
    values |= state_lib.flatten(
        base.load_base(restore.path, state_lib.unflatten(wanted)))
  initialized = tuple(
      path for path in flat if path not in known and path not in given)
  if prompt_file is None:
    values |= _started(model, values, initialized, flat)
  return Weights(
      trainable=state_lib.unflatten({k: values[k] for k in flat}),
      frozen=state_lib.unflatten(
          {k: v for k, v in values.items() if k not in flat}),
      trainable_shardings=jax.tree.map(lambda s: s.sharding, trainable),
      base_step=(int(getattr(source, "step", None) or 0)
                 if restore.step is None else restore.step),
      base_name=_base_name(restore.path), base_fingerprint=fingerprint,
      initialized=initialized, source=source)


def started_prefixes(
    model, trainable: dict[str, jax.Array], weights: Weights
) -> dict[str, jax.Array]:
  """What the prefixes that have a `start` begin as.

  Args:
    model: see `prepare`.
    trainable: other initial values than those of `weights`, by path.
    weights: gives everything else.

  Returns:
    Parameters by path; see `prefix_start.values`.
  """
  return _started(
      model, state_lib.flatten(weights.frozen) | trainable,
      weights.initialized, trainable)


def _started(model, values, initialized, placed):
  """`prefix_start.values`, each where `placed` has its parameter."""
  return {
      path: jax.device_put(array, placed[path].sharding)
      for path, array in prefix_start.values(
          model.module, state_lib.unflatten(values),
          frozenset(values) - set(initialized)).items()}


def _encoder_weights(model) -> dict[str, Any]:
  """Where an instance encoder that is trained starts from, by path."""
  path, prompt = heads.prompt_of(model.module) or ("", None)
  if getattr(prompt, "encoder", None) is None:
    return {}
  return {f"{path}/encoder/{name}": array for name, array in
          state_lib.flatten(model.instance_encoder.params).items()}


def state_shapes(
    weights: Weights, optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh, stacked: bool = False,
) -> step_lib.TrainState:
  """Shapes and shardings of a run's state.

  Args:
    weights: from `prepare`.
    optimizer: of the trainable tree.
    mesh: devices.
    stacked: whether the trainable tree is of several runs, see
      `train.stacked`.

  Returns:
    The state's tree of `jax.ShapeDtypeStruct`.
  """
  abstract = jax.eval_shape(
      _starting(weights.base_step, optimizer, stacked), weights.trainable)
  shardings = step_lib.TrainState(
      sharding.replicated(mesh), weights.trainable_shardings,
      sharding.state_shardings(
          abstract.optimizer_state, weights.trainable,
          weights.trainable_shardings, mesh))
  return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      abstract, shardings)


def initial_state(
    weights: Weights, optimizer: optax.GradientTransformation,
    shapes: step_lib.TrainState, stacked: bool = False,
) -> step_lib.TrainState:
  """The state to start from, on its devices.

  Args:
    weights: from `prepare`; their trainable tree becomes the state's, without
      a copy, and is no longer theirs.
    optimizer: of the trainable tree.
    shapes: from `state_shapes`.
    stacked: see `state_shapes`.
  """
  trainable, weights.trainable = weights.trainable, None
  return jax.jit(
      _starting(weights.base_step, optimizer, stacked), donate_argnums=0,
      out_shardings=jax.tree.map(lambda s: s.sharding, shapes))(trainable)


def _starting(base_step: int, optimizer, stacked: bool):
  """A function trainable tree -> state."""

  def start(trainable):
    optimizer_state = optimizer.init(trainable)
    if not base_step:
      return optimizer_state
    # T5X's Adafactor goes on counting at the checkpoint's step.
    return adafactor.counting_from(optimizer_state, base_step)

  if stacked:
    start = jax.vmap(start)

  def initialize(trainable):
    return step_lib.TrainState(
        jnp.int32(base_step), trainable, start(trainable))

  return initialize


def _base_name(path: str | None) -> str:
  """The folder's name; with its parent's where it is a step's folder."""
  if not path:
    return ""
  parent, name = os.path.split(os.path.abspath(path))
  if name.startswith("checkpoint_"):
    return os.path.join(os.path.basename(parent), name)
  return name


def _frozen(path: str, spec, dtype: str):
  """A frozen parameter's shape as it is to lie in memory."""
  if dtype != "int8":
    return _as(spec, jnp.dtype(dtype))
  axis = quantized.axis_of(path)
  return (_as(spec, jnp.float32) if axis is None
          else quantized.abstract(spec, axis))


def _as(spec, dtype):
  return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=spec.sharding)


def check_vocabulary(vocabulary, rows: int) -> None:
  """Refuses a vocabulary that belongs to another embedding table.

  Tables have a few rows more than the vocabulary has ids, to be divisible
  among devices (T5: 32,100 ids, 32,128 rows); many more are of another model.

  Args:
    vocabulary: see `data.vocabularies.Vocabulary`.
    rows: of the embedding table.

  Raises:
    UserError: if ids have no row, or over 1,024 rows (in large tables, a
      share of them) have no id.
  """
  ids = vocabulary.vocab_size
  spare = max(_MOST_SPARE_ROWS, int(rows * _MOST_SPARE_SHARE))
  if not rows - spare <= ids <= rows:
    raise errors.UserError(
        f"The vocabulary {vocabulary!r} has {ids:,} ids, but the embedding "
        f"table (NUM_EMBEDDINGS) has {rows:,} rows: set VOCABULARY_FILE (for a "
        "T5, VOCABULARY_EXTRA_IDS too) to the one that the model was trained "
        "with.")


def size(tree: Tree) -> int:
  """How many parameters a tree holds; scales of `Int8` are none."""
  return sum(math.prod(x.shape) for x in state_lib.flatten(tree).values())


def make_folder(path: str, setting: str) -> str:
  """Makes a folder for results and proves that it can be written to.

  Args:
    path: the folder.
    setting: the gin name that gave it, for the message.

  Returns:
    Its absolute path.

  Raises:
    UserError: if it cannot be made or written to.
  """
  path = os.path.abspath(path)
  probe = os.path.join(path, f".probe-{os.getpid()}")
  try:
    os.makedirs(path, exist_ok=True)
    with open(probe, "wb"):
      pass
    os.remove(probe)
  except OSError as error:
    raise errors.UserError(
        f"{setting} {path} cannot be written to: "
        f"{formats.why_not_written(error)}.") from error
  return path


def initializer(
    model, paths: Sequence[str], shardings: Tree
) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """A function rng -> initial float32 values of some parameters, by path.

  It is compiled once; XLA drops the rest of the model's initialisation.
  """
  if not paths:
    return lambda rng: {}
  flat_shardings = state_lib.flatten(shardings)

  def initialize(rng):
    params = state_lib.flatten(model.init(rng)["params"])
    return {path: params[path].astype(jnp.float32) for path in paths}

  return jax.jit(
      initialize,
      out_shardings={path: flat_shardings[path] for path in paths})
