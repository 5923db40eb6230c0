"""A trained method put to use: what `eval` and `infer` begin with."""

from collections.abc import Callable, Sequence
import dataclasses
import os
import re
from typing import Any

import jax

from prompt_tuning import errors
from prompt_tuning.checkpoints import base, runs
from prompt_tuning.formats import instance, peft
from prompt_tuning.methods import heads
from prompt_tuning.train import evaluation, inputs, settings, setup, sharding
from prompt_tuning.train import state as state_lib


@dataclasses.dataclass
class Application:
  """All that predictions are made with.

  Attributes:
    model: with room for what was trained.
    weights: on devices.
    members: the dataset's tasks with their rates, see `inputs.members`.
    dataset: sizes of batches.
    output_dir: absolute, and there.
    rng: for sampling.
    runner: compiled functions of the model.
  """

  model: Any
  weights: setup.Weights
  members: Sequence[tuple[Any, float]]
  dataset: settings.DatasetConfig
  output_dir: str
  rng: jax.Array
  runner: evaluation.Runner

  @property
  def arguments(self) -> tuple:
    """The last ones of `evaluation.predicted` and `run_task`."""
    return (self.dataset, self.model, self.weights.trainable,
            self.weights.frozen, self.rng)

  def examples(self, task):
    """A task's examples as ids."""
    return inputs.tokenized(task, self.dataset, self.model, self.output_dir)


def start(
    *,
    model,
    dataset: settings.DatasetConfig,
    restore: settings.RestoreCheckpointConfig,
    output_dir: str,
    output_setting: str,
    trainable: Sequence[str],
    prompt_file: str | None,
    adapter: str | None,
    random_seed: int,
    mesh: Callable[[], jax.sharding.Mesh],
    run_dir: str | None = None,
) -> Application:
  """Loads everything; refuses what cannot work before weights are read.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    dataset: what to run on.
    restore: the base weights.
    output_dir: where results go.
    output_setting: the gin name that gave it.
    trainable: patterns of the parameters that may be absent from the base and
      are then initialised, the prompt's from `prompt_file`.
    prompt_file: checked against the base by its card; None if there is none.
    adapter: a PEFT directory instead, of any method that we have; the model
      is then the plain one.
    random_seed: for initialisation and sampling.
    mesh: makes the device mesh.
    run_dir: the folder of a training of this model, whatever it trained.

  Raises:
    UserError: on any bad setting or file.
  """
  sharding.initialize_distributed()
  mesh = mesh()
  sharding.check_batch_size(dataset.batch_size, mesh)
  members = inputs.members(dataset)
  given = None
  if adapter:
    model, given = adapted(model, adapter, restore.path, prompt_file)
    trainable = [re.escape(path) for path in state_lib.flatten(given)]
  elif run_dir:
    given = _trained(model, run_dir, restore.path, trainable)
  elif prompt_file:
    given = _instance_parameters(model, prompt_file)
  model.check_lengths(dataset.task_feature_lengths)
  output_dir = setup.make_folder(output_dir, output_setting)
  rng = jax.random.PRNGKey(random_seed)
  weights = setup.prepare(
      model, restore, trainable, mesh, rng, prompt_file, given)
  return Application(
      model, weights, members, dataset, output_dir, rng,
      evaluation.Runner(model, mesh))


def _trained(
    model, run_dir: str, base_path: str | None, patterns: Sequence[str]
) -> dict[str, Any]:
  """The parameters that a run has trained, as the model has them.

  Raises:
    UserError: if they were trained on another base, or are not those that the
      model trains.
  """
  found, position = runs.trained(run_dir)
  if base_path and position.get("base_fingerprint") not in (
      "", base.fingerprint(base_path)):
    raise errors.UserError(
        f"The run in {run_dir} trained on other base weights than "
        f"CHECKPOINT_PATH {base_path}: give the same.")
  wanted, _ = state_lib.split(model.abstract()[0], patterns)
  wanted = {path: leaf.shape for path, leaf in
            state_lib.flatten(wanted).items()}
  for path in sorted(found.keys() & wanted.keys()):
    if found[path].shape != wanted[path]:
      raise errors.UserError(
          f"The run in {run_dir} has {path} of shape {found[path].shape}, and "
          f"the gin files' model has {wanted[path]}: take the files and "
          "settings of the run (its config.gin has them).")
  if wanted != {path: array.shape for path, array in found.items()}:
    raise errors.UserError(
        f"The run in {run_dir} trained {_listed(found)}, but the gin files' "
        f"model trains {_listed(wanted)}: take the files and settings of the "
        "run (its config.gin has them).")
  return state_lib.unflatten(found)


def _listed(paths) -> str:
  """Some of the paths, and how many there are."""
  paths = sorted(paths)
  return f"{len(paths)} parameters ({', '.join(paths[:2])}, …)" if (
      len(paths) > 2) else " and ".join(paths)


def _instance_parameters(model, prompt_file: str) -> dict[str, Any] | None:
  """What a file holds for the model's prompt, if it is made per example.

  Raises:
    UserError: if file and model are not of one kind, or do not fit.
  """
  place = heads.prompt_of(model.module)
  if instance.is_file(prompt_file) != (place is not None):
    raise errors.UserError(
        f"{prompt_file} is not what the model of the gin files has: a "
        f"{instance.SUFFIX} file needs prompts/lopa.gin or prompts/idpg.gin, "
        "and these need such a file.")
  if place is None:
    return None
  path, prompt = place
  found = instance.read(prompt_file)
  # The rest has its own refusals, in tracing the model.
  options = instance.options_of(prompt, model.instance_encoder)
  instance.check_options(prompt_file, found, options)
  shapes = state_lib.flatten(model.abstract()[0])
  instance.check_shapes(prompt_file, found, {
      name.removeprefix(f"{path}/"): value.shape
      for name, value in shapes.items() if name.startswith(f"{path}/")})
  return state_lib.unflatten({
      f"{path}/{name}": array for name, array in found.arrays.items()})


def adapted(
    model, adapter: str, base_path: str | None, prompt_file: str | None = None
) -> tuple[Any, dict[str, Any]]:
  """A plain model with room for an adapter, and the adapter's parameters.

  Args:
    model: without prompt, prefix and delta.
    adapter: a PEFT directory.
    base_path: the base weights, which must state their sizes.
    prompt_file: must be None.

  Raises:
    UserError: if the model is not plain, or the adapter does not fit it.
  """
  if not base_path:
    raise errors.UserError(
        "ADAPTER is set without CHECKPOINT_PATH: give the base weights that "
        f"{adapter} was trained on.")
  factories = [
      name for name in ("prompt_factory", "prefix_factory",
                        "encoder_prefix_factory", "decoder_prefix_factory",
                        "cross_prefix_factory")
      if getattr(model.module, name, None) is not None]
  if factories or model.delta is not None or prompt_file:
    raise errors.UserError(
        f"ADAPTER is {os.path.basename(os.path.abspath(adapter))}, and the "
        "gin files give a prompt, prefix or delta as well: take a models/ "
        "file without one, no prompts/ file, and PROMPT_FILE = None.")
  read = peft.load(adapter)
  target = peft.Base.of(base.open_base(base_path))
  # Adapters name each layer's arrays, as unrolled layers have them.
  config = dataclasses.replace(model.module.config, scan_layers=False)
  module = model.module.clone(config=config, **peft.arguments(read, target))
  return (
      dataclasses.replace(
          model, module=module, delta=peft.delta(read, target)),
      peft.to_params(read, target))
