"""Evaluation while training and after it: losses, predictions, metrics."""

from collections.abc import Iterator, Sequence
import copy
import functools
import itertools
import json

import jax
import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import batches, tasks, token_ids, vocabularies
from prompt_tuning.train import inputs, meter, reporting, settings, sharding
from prompt_tuning.train import step as step_lib


class Runner:
  """The compiled evaluation steps of one model, over whole datasets."""

  def __init__(self, model, mesh: jax.sharding.Mesh):
    self._mesh = mesh
    self._encoding = model.features
    self._replicated = sharding.replicated(mesh)
    compiled = functools.partial(
        jax.jit, out_shardings=self._replicated,
        compiler_options=step_lib.compiler_options())
    self._loss = compiled(step_lib.make_eval_step(model))
    self._predict = compiled(step_lib.make_predict_step(model))
    self._score = compiled(step_lib.make_score_step(model))
    self._score_first = compiled(step_lib.make_score_first_step(model))
    self._labels = (compiled(step_lib.make_label_step(model))
                    if model.weighs_labels else None)

  def batches(
      self, examples: token_ids.Examples, dataset: settings.DatasetConfig,
      limit: int | None = None, target: Sequence[int] | None = None,
  ) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Batches in order, on devices, with how many of their rows are real.

    Args:
      examples: of one task.
      dataset: sizes of batches.
      limit: at most so many batches.
      target: ids in the place of every example's targets.
    """
    sharding.check_batch_size(dataset.batch_size, self._mesh)
    index, count = sharding.process_shard(self._mesh)
    for batch in batches.eval_batches(
        examples, dataset.batch_size, dict(dataset.task_feature_lengths),
        limit, dataset.bucket_lengths, index, count, self._encoding, target):
      yield (sharding.put_batch(batch.features, self._mesh),
             int(batch.is_real.sum()))

  def loss(self, trainable, frozen, examples, dataset, limit=None):
    """Averages a token, teacher-forced: see `meter.a_token`."""
    total = {}
    for batch, _ in self.batches(examples, dataset, limit):
      for name, value in self._loss(trainable, frozen, batch).items():
        total[name] = total.get(name, 0.0) + float(value)
    found = meter.a_token(total)
    found.pop("z_loss", None)
    return found

  def predict(self, trainable, frozen, examples, dataset, rng=None):
    """Predicted ids of every example: a list of int arrays [U]."""
    found = []
    for number, (batch, real) in enumerate(self.batches(examples, dataset)):
      key = None if rng is None else jax.random.fold_in(rng, number)
      tokens = self._predict(trainable, frozen, batch, key)
      found.extend(np.asarray(tokens)[:real])
    return found

  def score(self, trainable, frozen, examples, dataset, target=None):
    """Log-probability of every example's targets: a list of floats.

    Args:
      trainable: tree.
      frozen: tree.
      examples: of one task.
      dataset: sizes of batches.
      target: ids in the place of every example's targets.
    """
    found = []
    for batch, real in self.batches(examples, dataset, target=target):
      scores = np.asarray(self._score(trainable, frozen, batch))[:real]
      found.extend(scores.tolist())
    return found

  def rank(self, trainable, frozen, examples, dataset, labels):
    """Log-probability of every label after every example: [N, labels].

    A model that weighs labels has scores of its own, see
    `models.valid_labels`.

    Args:
      trainable: tree.
      frozen: tree.
      examples: N of one task; their targets are not used.
      dataset: sizes of batches.
      labels: the ids of each label, see `label_ids`. Where each is a single
        token, one pass gives all.
    """
    if self._labels is not None:
      return np.concatenate([
          np.asarray(self._labels(trainable, frozen, batch))[:real]
          for batch, real in self.batches(examples, dataset)])
    if all(len(ids) == 1 for ids in labels):
      tokens = np.asarray(labels, np.int32)[:, 0]
      return np.concatenate([
          np.asarray(self._score_first(trainable, frozen, batch, tokens))[:real]
          for batch, real in self.batches(examples, dataset)])
    return np.stack([
        np.asarray(self.score(trainable, frozen, examples, dataset, ids))
        for ids in labels], axis=1)


def label_ids(
    task: tasks.Task, vocabulary: vocabularies.Vocabulary,
    dataset: settings.DatasetConfig,
) -> list[list[int]]:
  """The ids of a task's label texts.

  They end in an end-of-sequence only if one label begins another, which
  would never be less likely than the longer one without.

  Args:
    task: has `label_texts`.
    vocabulary: of the targets.
    dataset: `task_feature_lengths` must hold every label.

  Raises:
    UserError: a label has no ids, is too long, or is the same as another.
  """
  found = [vocabulary.encode(text) for text in task.label_texts]
  if len(set(map(tuple, found))) < len(found) or not all(found):
    raise errors.UserError(
        f"the labels of the task {task.name} must be different tokens, at "
        f"least one each: {', '.join(map(repr, task.label_texts))} are not; "
        "give other texts")
  if any(one == other[:len(one)]
         for one, other in itertools.permutations(found, 2)):
    found = [[*ids, vocabulary.eos_id] for ids in found]
  room = dataset.task_feature_lengths["targets"]
  for text, ids in zip(task.label_texts, found):
    if len(ids) > room:
      raise errors.UserError(
          f"the label {text!r} of the task {task.name} has {len(ids)} tokens, "
          f"but TASK_FEATURE_LENGTHS['targets'] is {room}; raise it")
  return found


def predicted(
    runner: Runner, task: tasks.Task, examples: token_ids.Examples,
    dataset: settings.DatasetConfig, model, trainable, frozen, rng=None,
) -> tuple[list[str], list[dict[str, float]] | None]:
  """A task's predicted texts.

  That of a task with `label_texts` is the likeliest of them, of another task
  what the model decodes.

  Returns:
    The texts, and of a task with `label_texts` each example's
    log-probabilities by label.
  """
  if not task.label_texts:
    ids = runner.predict(trainable, frozen, examples, dataset, rng)
    return [
        model.output_vocabulary.decode(row.tolist()) for row in ids], None
  ranks = runner.rank(
      trainable, frozen, examples, dataset,
      label_ids(task, model.output_vocabulary, dataset))
  return (
      [task.label_texts[i] for i in np.argmax(ranks, axis=1)],
      [dict(zip(task.label_texts, row.tolist())) for row in ranks])


def run_task(
    runner: Runner, task: tasks.Task, examples: token_ids.Examples,
    dataset: settings.DatasetConfig, model, trainable, frozen, rng=None,
) -> tuple[dict, list[dict]]:
  """Predicts a task's examples, see `predicted`, and scores them.

  Returns:
    The metrics by name, and one row an example: input, target, output (the
    predicted text), prediction (after the task's postprocessor) and, of a
    task with `label_texts`, scores (log-probabilities by label).
  """
  originals = [{**examples.original(i),
                "targets_length": len(examples.ids("targets", i))}
               for i in range(len(examples))]
  targets = [
      _target_text(example, model.output_vocabulary) for example in originals]
  outputs = scores = of_labels = None
  if task.label_texts or task.metric_fns or not task.score_metric_fns:
    outputs, of_labels = predicted(
        runner, task, examples, dataset, model, trainable, frozen, rng)
  if task.score_metric_fns:
    scores = runner.score(trainable, frozen, examples, dataset)
  metrics = tasks.evaluate(task, originals, targets, outputs, scores)
  rows = [
      {"input": _shown(example), "target": target, "output": output,
       "prediction": tasks.postprocess(task, output, example, False)}
      for example, target, output in zip(originals, targets, outputs or [])]
  for row, found in zip(rows, of_labels or []):
    row["scores"] = found
  return metrics, rows


def _target_text(example, vocabulary) -> str:
  """An example's target as text, also where the task gives ids."""
  target = example.get("targets_pretokenized", example["targets"])
  return target if isinstance(target, str) else vocabulary.decode(
      list(target))


def _shown(example) -> str:
  text = example.get("inputs_pretokenized", example["inputs"])
  return text if isinstance(text, str) else json.dumps(text)


class Evaluator:
  """The evaluations of a training run."""

  def __init__(
      self, model, mesh, model_dir: str,
      loss_dataset: settings.DatasetConfig | None,
      metric_dataset: settings.DatasetConfig | None,
      loss_batches: int | None,
      rng: jax.Array,
      runner: Runner | None = None,
  ):
    self._model, self._dir, self._rng = model, model_dir, rng
    self._runner = runner or Runner(model, mesh)
    self._limit = loss_batches
    self._loss_data = _read(loss_dataset, model, model_dir)
    self._metric_data = _read(metric_dataset, model, model_dir)

  def of_run(self, model_dir: str, rng: jax.Array) -> "Evaluator":
    """The same evaluations for another run, into another folder."""
    other = copy.copy(self)
    other._dir, other._rng = model_dir, rng
    return other

  def run(
      self, step: int, trainable, frozen, reporter: reporting.Reporter
  ) -> dict[str, float]:
    """Evaluates, reports, writes predictions; gives `{task}/{metric}`."""
    results = {}
    for task, examples, dataset in self._loss_data:
      losses = self._runner.loss(
          trainable, frozen, examples, dataset, self._limit)
      reporter.evaluation(step, task.name, losses)
      results |= {f"{task.name}/{k}": v for k, v in losses.items()}
    for task, examples, dataset in self._metric_data:
      if not (task.metric_fns or task.score_metric_fns):
        continue
      metrics, rows = run_task(
          self._runner, task, examples, dataset, self._model, trainable,
          frozen, self._rng)
      reporter.evaluation(step, task.name, metrics)
      if jax.process_index() == 0:
        reporting.write_predictions(self._dir, task.name, step, rows)
      results |= {f"{task.name}/{k}": v for k, v in metrics.items()
                  if isinstance(v, (int, float))}
    return results


def _read(dataset, model, model_dir):
  if dataset is None:
    return []
  return [(task, inputs.tokenized(task, dataset, model, model_dir), dataset)
          for task, _ in inputs.members(dataset)]
