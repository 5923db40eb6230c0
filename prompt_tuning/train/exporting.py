"""What a run leaves for others: prompts with cards, adapters, whole models."""

from collections.abc import Mapping
import dataclasses
import json
import os
import types
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import formats, versions
from prompt_tuning.checkpoints import base, hugging_face, runs
from prompt_tuning.formats import card, npy, peft
from prompt_tuning.methods import folding, lora
from prompt_tuning.train import inputs, settings
from prompt_tuning.train import state as state_lib

MODEL_FOLDER = "hugging_face"
ADAPTER_FOLDER = "adapter"


def write_configuration(model_dir: str):
  """Writes `config.gin` and `versions.json`: what was run, and with what."""
  if jax.process_index() == 0:
    formats.write_whole(
        os.path.join(model_dir, "config.gin"), gin.config_str().encode())
    formats.write_whole(
        os.path.join(model_dir, "versions.json"),
        json.dumps(versions.installed(), indent=2).encode())


def write_trained(
    folder: str, step: int, model, trainable, weights, base_path: str | None,
    dataset: settings.DatasetConfig, results: Mapping[str, float],
    more: Mapping[str, Any],
):
  """Writes what was trained in each form that others read.

  Args:
    folder: of the run.
    step: the run's.
    model: what the trained tree belongs to.
    trainable: the trained tree.
    weights: see `write_prompts`.
    base_path: see `write_adapter`.
    dataset: see `write_prompts`.
    results: see `write_prompts`.
    more: see `write_prompts`.
  """
  write_prompts(
      folder, step, folding.fold(model.module, trainable), weights, dataset,
      results, more)
  write_adapter(folder, model, trainable, base_path)


def write_prompts(
    folder: str, step: int, trainable, weights,
    dataset: settings.DatasetConfig, results: Mapping[str, float],
    more: Mapping[str, Any],
):
  """Writes trained prompts as `.npy`, the newest one with its card.

  Args:
    folder: of the run.
    step: the run's.
    trainable: the trained tree; one without prompts writes nothing.
    weights: `setup.Weights`, where the base came from.
    dataset: what it was trained on.
    results: metrics of the last evaluation.
    more: settings to have on the card besides the dataset's.
  """
  prompts = _prompts_in(trainable)
  if not prompts:
    return
  runs.save_numpy(folder, step, prompts)
  only = list(prompts.values())
  name, fingerprint = weights.base_name, weights.base_fingerprint
  table = state_lib.flatten(trainable).get(base.EMBEDDING)
  if table is not None:  # the base was trained too; the prompt is for that one
    name, fingerprint = MODEL_FOLDER, card.fingerprint(_on_host(table))
  if jax.process_index() == 0 and len(only) == 1 and only[0].ndim == 2:
    path = os.path.join(folder, "prompt.npy")
    npy.write(path, np.asarray(only[0]))
    card.write_card(
        path, base_model=name, base_fingerprint=fingerprint,
        task=inputs.task_name(dataset), metric=dict(results), step=step,
        settings={"batch_size": dataset.batch_size,
                  "task_feature_lengths": dict(dataset.task_feature_lengths),
                  **more})


def write_adapter(folder: str, model, trainable, base_path: str | None):
  """Writes a trained LoRA or (IA)3 as a PEFT directory.

  Args:
    folder: of the run.
    model: has the `delta` and the module's config.
    trainable: the trained tree; one without a delta's parameters writes
      nothing, since the delta is then not this run's.
    base_path: the base's; a model trained from scratch writes nothing.
  """
  if model.delta is None or not base_path:
    return
  scope = "lora" if isinstance(model.delta, lora.Lora) else "ia3"
  flat = {path: value for path, value in state_lib.flatten(trainable).items()
          if f"/{scope}/" in path}
  if not flat:
    return
  flat = _on_host(flat)
  if jax.process_index() == 0:
    weights = base.open_base(base_path)
    if getattr(weights, "config", None) is None:  # T5X's do not say
      weights = types.SimpleNamespace(
          path=base_path, family="t5",
          config=dataclasses.asdict(model.module.config))
    adapter = peft.from_params(
        state_lib.unflatten(flat), peft.Base.of(weights), scope.upper(),
        model.delta)
    peft.save(adapter, os.path.join(folder, ADAPTER_FOLDER))


def write_model(folder: str, model, params):
  """Writes a wholly trained model as a directory that anything can load."""
  prompts = _prompts_in(params)  # have files of their own
  params = _on_host(state_lib.unflatten({
      path: value for path, value in state_lib.flatten(params).items()
      if path not in prompts}))
  if model.delta is not None:
    params = model.delta.merge(params)
  if jax.process_index() == 0:
    hugging_face.save(
        os.path.join(folder, MODEL_FOLDER), params, model.module.config,
        "float32")


def _prompts_in(params) -> dict[str, Any]:
  """The prompts among some parameters, by path."""
  return {path: value for path, value in state_lib.flatten(params).items()
          if "prompt" in path or "/prefix/" in path}


def _on_host(tree):
  """Whole arrays, wherever their parts are; all processes call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
