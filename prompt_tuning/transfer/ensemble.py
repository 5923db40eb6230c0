"""Several prompts of one model vote, in one pass over the data.

    python -m prompt_tuning.transfer.ensemble --gin_file=models/… \\
        --gin_file=prompt_tuning/configs/runs/prompt_ensemble_eval.gin \\
        --gin.PROMPT_FILES="['seed_0.npy', 'seed_1.npy', 'seed_2.npy']"

Lester et al. 2021 (arXiv 2104.08691), section 6: prompts of one task differ
enough to be an ensemble, and the frozen network is there once for all of them.
A batch holds each example once with each prompt; the prediction is the one that
most prompts make. Of predictions that equally many make it is that of the
prompt that is named first.

In EVAL_OUTPUT_DIR, each with its `inference_eval/` as `prompt_tuning.eval` has:

    prompts/NAME/   of each prompt, by its file's name
    ensemble/       of the vote; predictions have the `votes` of all prompts
    ensemble.md     average, best and ensemble, as in the paper's table 3
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import statistics
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import command_line, errors, formats
from prompt_tuning.data import tasks
from prompt_tuning.formats import card, prompt_file
from prompt_tuning.train import (
  application,
  comparison,
  evaluation,
  inputs,
  reporting,
  settings,
  sharding,
)

Array = jax.Array

TABLE = "ensemble.md"

# ----------------------------------------------------------- many in one batch


class EnsemblePrompt(nn.Module):
  """A parameter `prompt` [N, P, H]; row r of a batch has prompt r modulo N.

  Attributes:
    count: N.
    length: P.
    prompt_init: of all of them.
    dtype: of what comes out; the parameter is float32.
  """

  count: int
  length: int
  prompt_init: Callable[..., Array]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B * N, T], embeddings [B * N, T, H] -> [B * N, P, H]."""
    del x
    prompts = partitioning.param_with_axes(
        "prompt", self.prompt_init,
        (self.count, self.length, x_embed.shape[-1]), jnp.float32,
        axes=("tasks", "prompt", "prompt_embed"))
    chosen = jnp.arange(x_embed.shape[0]) % self.count
    return jnp.take(prompts, chosen, axis=0).astype(self.dtype)


def prompt_of_files(paths: Sequence[str]) -> EnsemblePrompt:
  """The prompts of some files, of any format of `formats.prompt_file`.

  Raises:
    UserError: if there are none, or one differs in shape from the first, or
      from what the model wants.
  """
  _check_paths(paths)
  arrays = [prompt_file.read(path) for path in paths]
  for path, array in zip(paths, arrays):
    if array.shape != arrays[0].shape:
      raise errors.UserError(
          f"{path} has the shape {array.shape} and {paths[0]} "
          f"{arrays[0].shape}, but the prompts of an ensemble share a batch: "
          "name prompts of one length and width.")
  stacked = np.stack(arrays)

  def initialize(rng, shape, dtype=jnp.float32):
    del rng
    if stacked.shape != tuple(shape):
      raise errors.UserError(
          f"The prompts of PROMPT_FILES have width {stacked.shape[-1]}, but "
          f"the model's is {shape[-1]}: name prompts that were trained on "
          "this model.")
    return jnp.asarray(stacked, dtype)

  return EnsemblePrompt(*stacked.shape[:2], initialize)


def _check_paths(paths: Sequence[str]) -> None:
  if isinstance(paths, str) or not paths:
    raise errors.UserError(
        f"PROMPT_FILES is {paths!r}: name the prompts in a list, as in "
        "['seed_0.npy', 'seed_1.npy'].")


@dataclasses.dataclass(frozen=True)
class Repeated:
  """A model as `evaluation.Runner` sees it, with N rows for each example.

  What is asked of it comes with an axis N behind the batch's.

  Attributes:
    model: see `models.language_model.LanguageModel`.
    count: N.
  """

  model: Any
  count: int

  @property
  def features(self):
    """See `LanguageModel`."""
    return self.model.features

  @property
  def weighs_labels(self):
    """See `LanguageModel`."""
    return self.model.weighs_labels

  def predict(self, params, batch, rng: Array | None = None) -> Array:
    """[B, N, U] int32."""
    return self._apart(self.model.predict(params, self._repeated(batch), rng))

  def score(self, params, batch) -> Array:
    """[B, N] float32."""
    return self._apart(self.model.score(params, self._repeated(batch)))

  def label_scores(self, params, batch) -> Array:
    """[B, C, N] float32."""
    return jnp.moveaxis(self._apart(
        self.model.label_scores(params, self._repeated(batch))), 1, -1)

  def _repeated(self, batch: Mapping[str, Array]) -> dict[str, Array]:
    # An example's rows adjoin, so they stay on the device that has it.
    return {name: jnp.repeat(x, self.count, axis=0)
            for name, x in batch.items()}

  def _apart(self, x: Array) -> Array:
    return x.reshape(-1, self.count, *x.shape[1:])


# ------------------------------------------------------------------- the vote


def vote(predictions: Sequence[str]) -> str:
  """The most frequent one; among several, the one that comes first."""
  return collections.Counter(predictions).most_common(1)[0][0]


class _Member:
  """A runner's results for one of N prompts, asked for as a runner is."""

  def __init__(self, runner: evaluation.Runner, number: int, found: dict):
    self._runner, self._number, self._found = runner, number, found

  def predict(self, *arguments):
    return [ids[self._number] for ids in self._once("predict", arguments)]

  def score(self, *arguments):
    return [row[self._number] for row in self._once("score", arguments)]

  def rank(self, *arguments):
    return self._once("rank", arguments)[..., self._number]

  def _once(self, name, arguments):
    if name not in self._found:
      self._found[name] = getattr(self._runner, name)(*arguments)
    return self._found[name]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A task's results: (metrics, rows) as `evaluation.run_task` gives them.

  Attributes:
    members: of each prompt.
    ensemble: of the vote.
  """

  members: list[tuple[dict, list[dict]]]
  ensemble: tuple[dict, list[dict]]


def run_task(
    runner: evaluation.Runner, count: int, task: tasks.Task, examples,
    dataset: settings.DatasetConfig, model, *arguments,
) -> Outcome:
  """Runs a task with N prompts at once.

  Args:
    runner: of a `Repeated` model.
    count: N.
    task: needs metrics of predictions; those of scores have no vote.
    examples: `token_ids.Examples`.
    dataset: sizes of batches.
    model: the model itself, for its vocabulary.
    *arguments: trainable and frozen trees, and the rng.

  Raises:
    UserError: if the task has nothing to vote on.
  """
  if not (task.metric_fns or task.label_texts):
    raise errors.UserError(
        f"The task {task.name} judges scores, and there is no vote on them: "
        "take the task whose metrics compare predictions.")
  found: dict[str, Any] = {}
  members = [
      evaluation.run_task(
          _Member(runner, number, found), task, examples, dataset, model,
          *arguments)
      for number in range(count)]
  rows = []
  for each in zip(*(rows for _, rows in members), strict=True):
    votes = [row["output"] for row in each]
    chosen = vote(votes)
    rows.append(each[votes.index(chosen)] | {"votes": votes})
    rows[-1].pop("scores", None)  # of one prompt
  metrics = tasks.evaluate(
      task, [examples.original(i) for i in range(len(examples))],
      [row["target"] for row in rows], [row["output"] for row in rows])
  return Outcome(members, (metrics, rows))


# ---------------------------------------------------------------- the command


def evaluate(
    *,
    model,
    dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    output_dir: str,
    prompt_files: Sequence[str],
    trainable: Sequence[str],
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> list[dict[str, Any]]:
  """Evaluates some prompts, each alone and together, on a task or mixture.

  Args:
    model: see `models.language_model.LanguageModel`; its prompt is
      `prompt_of_files`.
    dataset_cfg: what to evaluate on; a batch has N times as many rows.
    restore_checkpoint_cfg: the base weights.
    output_dir: where results go, see the module.
    prompt_files: checked against the base by their cards.
    trainable: patterns of the prompt's path.
    random_seed: for sampling.
    mesh: makes the device mesh.

  Returns:
    The records of the table.

  Raises:
    UserError: on any bad setting or file.
  """
  _check_paths(prompt_files)
  applied = application.start(
      model=model, dataset=dataset_cfg, restore=restore_checkpoint_cfg,
      output_dir=output_dir, output_setting="EVAL_OUTPUT_DIR",
      trainable=trainable, prompt_file=prompt_files[0], adapter=None,
      random_seed=random_seed, mesh=mesh)
  for path in prompt_files[1:]:
    card.check(
        path, applied.weights.base_fingerprint, restore_checkpoint_cfg.path)
  count = len(prompt_files)
  runner = evaluation.Runner(Repeated(applied.model, count), mesh())
  folders = [os.path.join("prompts", name)
             for name in prompt_file.short_names(prompt_files)]
  records, step = [], applied.weights.base_step
  # What was logged of other tasks at the base's step stays.
  with reporting.Reporter(
      applied.output_dir, step, step, initial_step=step) as reporter:
    for task, _ in applied.members:
      examples = applied.examples(task)
      for note in inputs.truncation_notes(examples):
        reporter.note(note)
      outcome = run_task(runner, count, task, examples, *applied.arguments)
      for folder, result in zip(
          [*folders, "ensemble"], [*outcome.members, outcome.ensemble]):
        _report(reporter, applied, folder, task.name, *result)
      records += summary(task.name, outcome)
    records += overall(records)
    table = comparison.markdown(records)
    reporter.note(table)
  if jax.process_index() == 0:
    formats.write_whole(os.path.join(applied.output_dir, TABLE), table.encode())
  return records


def _report(reporter, applied, folder: str, task: str, metrics, rows) -> None:
  """Logs one voter's results into its own folder."""
  step = applied.weights.base_step
  path = os.path.join(applied.output_dir, folder)
  part = reporter.part(path, folder)
  part.evaluation(step, task, metrics)
  part.close()
  reporting.write_predictions(path, task, step, rows)


def summary(task: str, outcome: Outcome) -> list[dict[str, Any]]:
  """A record for each metric of a task: average, best and ensemble."""
  records = []
  for metric, together in outcome.ensemble[0].items():
    values = [metrics.get(metric) for metrics, _ in outcome.members]
    if all(isinstance(v, (int, float)) for v in (together, *values)):
      records.append({
          "task": task, "metric": metric, "average": statistics.fmean(values),
          "best": max(values), "ensemble": float(together)})
  return records


def overall(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The mean over tasks of the mean over their metrics, if tasks are many."""
  by_task = collections.defaultdict(list)
  for record in records:
    by_task[record["task"]].append(record)
  if len(by_task) < 2:
    return []
  return [{"task": "all", "metric": "mean"} | {
      name: statistics.fmean(
          statistics.fmean(record[name] for record in of_task)
          for of_task in by_task.values())
      for name in ("average", "best", "ensemble")}]


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning.transfer import ensemble as importable

  command_line.main(importable.evaluate)
