"""From dataset settings to batches: the data side of train, eval and infer."""

import dataclasses
import importlib
import os

import jax

from prompt_tuning import errors
from prompt_tuning.data import (
  batches,
  encodings,
  features,
  tasks,
  token_ids,
  valid_labels,
)
from prompt_tuning.methods import heads, multitask
from prompt_tuning.train import settings, sharding


def task_name(dataset: settings.DatasetConfig) -> str:
  """The name of the task or mixture of a dataset."""
  task = dataset.mixture_or_task_name
  return task if isinstance(task, str) else task.name


def members(
    dataset: settings.DatasetConfig,
) -> list[tuple[tasks.Task, float]]:
  """The tasks of a dataset with their mixing rates; one task has rate 1.

  Those of a mixture that lack the dataset's split are left out, unless all do.
  """
  if dataset.module:
    _import(dataset.module)
  found = tasks.get_task(dataset.mixture_or_task_name)
  if not isinstance(found, tasks.Mixture):
    return [(found, 1.0)]
  with_split = [
      (task, rate) for task, rate in found.tasks
      if dataset.split in task.splits]
  return with_split or list(found.tasks)


def _import(module: str):
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{module}.".startswith(f"{error.name}."):
      raise  # what is missing is something that the user's module imports
    raise errors.UserError(
        f"MIXTURE_OR_TASK_MODULE = {module!r} is not found: give a module "
        "that is installed, or that lies in the working directory.") from error


def tokenized(
    task: tasks.Task, dataset: settings.DatasetConfig, model, model_dir: str
) -> token_ids.Examples:
  """Examples of one task as ids, from the cache if they are there.

  They have encodings if the model's prompt wants them of another network.
  """
  cache = dataset.cache_dir or os.path.join(model_dir, "cache")
  examples = features.tokenize(
      task, dataset.split, model.input_vocabulary, model.output_vocabulary,
      dict(dataset.task_feature_lengths), cache, model.features)
  if model.instance_encoder is not None:
    _, prompt = heads.prompt_of(model.module) or (None, None)
    if getattr(prompt, "encoder", None) is None:
      examples = encodings.attach(examples, model.instance_encoder, cache)
    else:
      examples = encodings.attach_ids(examples, model.instance_encoder)
  multitask.check_examples(model.module, examples)
  if not model.weighs_labels:
    return examples
  return dataclasses.replace(examples, labels=valid_labels.ids_of(
      task, model.output_vocabulary, dataset.task_feature_lengths))


def train_examples(
    dataset: settings.DatasetConfig, model, model_dir: str,
) -> list[tuple[token_ids.Examples, float]]:
  """The tokenised tasks of a dataset with their rates."""
  found = [(tokenized(task, dataset, model, model_dir), rate)
           for task, rate in members(dataset) if rate > 0]
  for examples, _ in found:
    if examples.labels:
      valid_labels.check_targets(examples)
  return found


def train_batches(
    examples: list[tuple[token_ids.Examples, float]],
    dataset: settings.DatasetConfig, mesh: jax.sharding.Mesh, seed: int,
    encoding: features.Encoding,
) -> batches.TrainBatches:
  """This process's part of an endless, restorable stream of batches."""
  index, count = sharding.process_shard(mesh)
  return batches.TrainBatches(
      examples, dataset.batch_size, seed, dict(dataset.task_feature_lengths),
      bucket_lengths=dataset.bucket_lengths,
      process_index=index, process_count=count, encoding=encoding)


def truncation_notes(examples: token_ids.Examples) -> list[str]:
  """One sentence for each feature that had to be cut."""
  return [
      f"{cut.examples:,} of {len(examples):,} {examples.task_name} examples "
      f"had {feature} longer than TASK_FEATURE_LENGTHS; {cut.tokens:,} tokens "
      "were cut."
      for feature, cut in examples.truncated.items() if cut.examples]
