"""Evaluating a prompt on its frozen model: `python -m prompt_tuning.eval`.

Writes `inference_eval/{task}-metrics.jsonl` and the predictions beside it, as
training does, and prints the metrics.
"""

from collections.abc import Callable, Sequence
import os

import jax

from prompt_tuning import command_line
from prompt_tuning.train import (
  evaluation,
  inputs,
  reporting,
  settings,
  setup,
  sharding,
)


def evaluate(
    *,
    model,
    dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    output_dir: str,
    trainable: Sequence[str] = (),
    prompt_file: str | None = None,
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> dict[str, float]:
  """Predicts one split of a task or mixture and scores it.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    dataset_cfg: what to evaluate on.
    restore_checkpoint_cfg: the base weights.
    output_dir: where results go.
    trainable: patterns of the parameters that may be absent from the base and
      are then initialised, the prompt's from `prompt_file`.
    prompt_file: checked against the base by its card; None if there is none.
    random_seed: for initialisation and sampling.
    mesh: makes the device mesh.

  Returns:
    The metrics, `{task}/{metric}`.

  Raises:
    UserError: on any bad setting or file.
  """
  sharding.initialize_distributed()
  mesh = mesh()
  sharding.check_batch_size(dataset_cfg.batch_size, mesh)
  members = inputs.members(dataset_cfg)
  model.check_lengths(dataset_cfg.task_feature_lengths)
  output_dir = setup.make_folder(output_dir, "EVAL_OUTPUT_DIR")
  rng = jax.random.PRNGKey(random_seed)
  weights = setup.prepare(
      model, restore_checkpoint_cfg, trainable, mesh, rng, prompt_file)
  runner = evaluation.Runner(model, mesh)
  results = {}
  with reporting.Reporter(output_dir, 0) as reporter:
    for task, _ in members:
      examples = inputs.tokenized(task, dataset_cfg, model, output_dir)
      for note in inputs.truncation_notes(examples):
        reporter.note(note)
      metrics, rows = evaluation.run_task(
          runner, task, examples, dataset_cfg, model, weights.trainable,
          weights.frozen, rng)
      reporter.evaluation(weights.base_step, task.name, metrics)
      if jax.process_index() == 0:
        path = reporting.write_predictions(
            output_dir, task.name, weights.base_step, rows)
        reporter.note(f"Predictions: {os.path.relpath(path)}")
      results |= {f"{task.name}/{k}": v for k, v in metrics.items()}
  return results


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning import eval as importable

  command_line.main(importable.evaluate)
