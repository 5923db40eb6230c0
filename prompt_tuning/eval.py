"""Evaluating a prompt on its frozen model: `python -m prompt_tuning.eval`.

Writes `inference_eval/{task}-metrics.jsonl` and the predictions beside it, as
training does, and prints the metrics.
"""

from collections.abc import Callable, Sequence
import os

import jax

from prompt_tuning import command_line
from prompt_tuning.data import token_ids
from prompt_tuning.train import (
  application,
  evaluation,
  inputs,
  reporting,
  settings,
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
    adapter: str | None = None,
    run_dir: str | None = None,
    num_examples: int | None = None,
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
    adapter: see `application.start`.
    run_dir: see `application.start`.
    num_examples: of each task, spread evenly over the split; None for all.
    random_seed: for initialisation and sampling.
    mesh: makes the device mesh.

  Returns:
    The metrics, `{task}/{metric}`.

  Raises:
    UserError: on any bad setting or file.
  """
  if num_examples is not None:
    settings.check_positive("NUM_EXAMPLES", num_examples)
  applied = application.start(
      model=model, dataset=dataset_cfg, restore=restore_checkpoint_cfg,
      output_dir=output_dir, output_setting="EVAL_OUTPUT_DIR",
      trainable=trainable, prompt_file=prompt_file, adapter=adapter,
      run_dir=run_dir,
      random_seed=random_seed, mesh=mesh)
  step = applied.weights.base_step
  results = {}
  # What was logged of other tasks at the base's step stays.
  with reporting.Reporter(
      applied.output_dir, step, step, initial_step=step) as reporter:
    for task, _ in applied.members:
      examples = applied.examples(task)
      for note in inputs.truncation_notes(examples):
        reporter.note(note)
      if num_examples is not None:
        examples = examples.select(
            token_ids.spread(len(examples), num_examples))
      metrics, rows = evaluation.run_task(
          applied.runner, task, examples, *applied.arguments)
      reporter.evaluation(step, task.name, metrics)
      if jax.process_index() == 0:
        path = reporting.write_predictions(
            applied.output_dir, task.name, step, rows)
        reporter.note(f"Predictions: {os.path.relpath(path)}")
      results |= {f"{task.name}/{k}": v for k, v in metrics.items()}
  return results


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning import eval as importable

  command_line.main(importable.evaluate)
