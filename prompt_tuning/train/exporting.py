"""What a run leaves for others: prompts with cards, adapters, whole models."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import os
import re
import types
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import checkpoints, formats, versions
from prompt_tuning.checkpoints import base, hugging_face, runs
from prompt_tuning.formats import card, instance, peft
from prompt_tuning.methods import folding, heads, ia3, lora
from prompt_tuning.train import inputs, settings
from prompt_tuning.train import state as state_lib

MODEL_FOLDER = "hugging_face"
ADAPTER_FOLDER = "adapter"

# All that a run of prefix tuning with a decoder-only model trains, folded.
_PREFIX = "decoder/prefix/prefix"


def write_configuration(model_dir: str):
  """Writes `config.gin` and `versions.json`: what was run, and with what."""
  if jax.process_index() == 0:
    formats.write_whole(
        os.path.join(model_dir, "config.gin"), gin.config_str().encode())
    formats.write_whole(
        os.path.join(model_dir, "versions.json"),
        json.dumps(versions.installed(), indent=2).encode())


def writer(
    folder: str, step: int, model, trainable, weights,
    dataset: settings.DatasetConfig, results: Mapping[str, float],
    more: Mapping[str, Any],
) -> Callable[[], None]:
  """Copies what was trained to the host, for forms that others read.

  All processes call it, process 0 calls what it gives. That may run in the
  background: disks are slow, and the next step overwrites the trained arrays.

  Args:
    folder: of the run.
    step: the run's.
    model: what the trained tree belongs to.
    trainable: the trained tree.
    weights: see `prompt_writer`.
    dataset: see `prompt_writer`.
    results: see `prompt_writer`.
    more: see `prompt_writer`.

  Returns:
    A function that writes it.
  """
  if heads.prompt_of(model.module):
    prompt = instance_writer(
        folder, step, model, trainable, weights, dataset, results, more)
  else:
    trainable = folding.fold(model.module, trainable)
    prompt = prompt_writer(
        folder, step, trainable, weights, dataset, results, more)
  writers = prompt, adapter_writer(folder, model, trainable, weights.source)

  def write():
    for one in writers:
      one()

  return write


def prompt_writer(
    folder: str, step: int, trainable, weights,
    dataset: settings.DatasetConfig, results: Mapping[str, float],
    more: Mapping[str, Any],
) -> Callable[[], None]:
  """Trained prompts to be written as `.npy`, the newest one with its card.

  Args:
    folder: of the run.
    step: the run's.
    trainable: the trained tree; without prompts nothing will be written.
    weights: `setup.Weights`, where the base came from.
    dataset: what it was trained on.
    results: metrics of the last evaluation.
    more: settings to have on the card besides the dataset's.
  """
  prompts = _copied(_prompts_in(trainable))
  if not prompts:
    return lambda: None
  write_card = _card_writer(trainable, step, weights, dataset, results, more)

  def write():
    files = runs.save_numpy(folder, step, prompts)
    [name, array], *others = prompts.items()
    if not others and array.ndim == 2:
      path = os.path.join(folder, "prompt.npy")
      formats.link_whole(os.path.join(files, runs.numpy_name(name)), path)
      write_card(path)

  return write


def instance_writer(
    folder: str, step: int, model, trainable, weights,
    dataset: settings.DatasetConfig, results: Mapping[str, float],
    more: Mapping[str, Any],
) -> Callable[[], None]:
  """What makes prompts per example, to be written as one file with its card.

  Args:
    folder: of the run.
    step: the run's.
    model: has the method and the encoder.
    trainable: the trained tree; without the prompt's parameters nothing will
      be written.
    weights: see `prompt_writer`.
    dataset: see `prompt_writer`.
    results: see `prompt_writer`.
    more: see `prompt_writer`.
  """
  path, prompt = heads.prompt_of(model.module)
  arrays = _copied({
      name.removeprefix(f"{path}/"): value
      for name, value in state_lib.flatten(trainable).items()
      if name.startswith(f"{path}/")})
  if not arrays:
    return lambda: None
  options = instance.options_of(prompt, model.instance_encoder)
  write_card = _card_writer(
      trainable, step, weights, dataset, results, options | more)

  def write():
    file = os.path.join(folder, f"prompt{instance.SUFFIX}")
    instance.write(file, instance.InstancePrompt(options, arrays))
    write_card(file, (options["length"], model.module.config.embed_dim))

  return write


def _card_writer(trainable, step, weights, dataset, results, more):
  """A function (file, shape=None) that writes the card of a prompt's file."""
  table = _copied(state_lib.flatten(trainable).get(base.EMBEDDING))
  metric = dict(results)

  def write(file: str, shape: tuple[int, ...] | None = None):
    name, fingerprint = weights.base_name, weights.base_fingerprint
    if table is not None:  # the base was trained too; it is that one's prompt
      name, fingerprint = MODEL_FOLDER, card.fingerprint(table)
    card.write_card(
        file, base_model=name, base_fingerprint=fingerprint,
        task=inputs.task_name(dataset), metric=metric, step=step,
        settings={"batch_size": dataset.batch_size,
                  "task_feature_lengths": dict(dataset.task_feature_lengths),
                  **more}, shape=shape)

  return write


def adapter_writer(
    folder: str, model, trainable, source: checkpoints.BaseWeights | None
) -> Callable[[], None]:
  """A trained LoRA, (IA)3 or prefix to be written as a PEFT directory.

  Of a prefix only that of a decoder-only model, which is the same in PEFT.

  Args:
    folder: of the run.
    model: has the `delta` and the module's config.
    trainable: the trained tree, folded; without a delta's parameters nothing
      will be written, since the delta is then not this run's.
    source: the base, opened; a model trained from scratch has no adapter.
  """
  flat = state_lib.flatten(trainable)
  is_original = isinstance(model.delta, ia3.OriginalIa3)
  if set(flat) == {_PREFIX} and hasattr(model.module, "prefix_factory"):
    kind = "PREFIX_TUNING"
  elif model.delta is not None:
    kind = "LORA" if isinstance(model.delta, lora.Lora) else "IA3"
    scope = "ia3_scaling" if is_original else kind.lower() + "/"
    flat = {path: value for path, value in flat.items() if f"/{scope}" in path}
  else:
    return lambda: None
  if source is None or not flat:
    return lambda: None
  flat = _copied(flat)

  def write():
    stated = source
    if getattr(source, "config", None) is None:  # T5X's do not say
      stated = types.SimpleNamespace(
          path=source.path, family="t5",
          config=dataclasses.asdict(model.module.config))
    params = state_lib.unflatten(flat)
    adapter = peft.from_params(
        ia3.to_plain(params) if is_original else params, peft.Base.of(stated),
        kind, model.delta)
    peft.save(adapter, os.path.join(folder, ADAPTER_FOLDER))

  return write


def changes_base(trainable, frozen, weights) -> bool:
  """Whether a run trains parameters of the base, and not only new ones."""
  return not frozen or any(
      path not in weights.initialized for path in state_lib.flatten(trainable))


def write_model(
    folder: str, model, params, weights,
    saving: settings.SaveCheckpointConfig,
):
  """Writes a model whose base was trained, in a folder that anything loads.

  The files of the base's tokenizer are copied beside the weights. An earlier
  folder stays until the new one is complete.

  Args:
    folder: of the run.
    model: has the `delta`, which is merged, and the module's config.
    params: all of the model's; each is gathered when it is written.
    weights: `setup.Weights`, where the base came from.
    saving: the weights' dtype in the files, and how large these may be.
  """
  prompts = _prompts_in(params)  # have files of their own
  params = state_lib.unflatten({
      path: value for path, value in state_lib.flatten(params).items()
      if path not in prompts})
  if model.delta is not None:
    params = model.delta.merge(params)
  source = weights.source
  known = getattr(source, "config", None) is not None  # T5X's do not say
  target = os.path.join(folder, MODEL_FOLDER)
  with (formats.whole_folder(target, replace=True)
        if jax.process_index() == 0 else contextlib.nullcontext()) as made:
    hugging_face.save(
        made, params, model.module.config, saving.model_dtype,
        source.family if known else None,
        hugging_face.token_ids(source.path) if known else None,
        saving.max_shard_bytes, _on_host)
    if made and known:
      hugging_face.copy_companions(source.path, made)


def _prompts_in(params) -> dict[str, Any]:
  """The prompts among some parameters, by path."""
  return {path: value for path, value in state_lib.flatten(params).items()
          if "prompt" in path or re.search("/(cross_)?prefix/", path)}


def _on_host(tree):
  """Whole arrays, wherever their parts are; all processes call it."""
  return jax.tree.map(runs.on_host, tree)


def _copied(tree):
  """`_on_host` for what is read when a later step may have overwritten it."""
  return jax.tree.map(lambda x: np.array(runs.on_host(x)), tree)
