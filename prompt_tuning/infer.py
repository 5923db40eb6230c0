"""Predictions or scores for a file of inputs: `python -m prompt_tuning.infer`.

Writes `{task}-{mode}.jsonl` to INFER_OUTPUT_DIR, one line an example in the
order of the data: the example's own fields and `prediction` or `score`. The
prediction of a task with labels to rank is the likeliest, and `scores` are
their log-probabilities.
"""

from collections.abc import Callable, Sequence
import json
import os

import jax

from prompt_tuning import command_line, errors, formats
from prompt_tuning.train import application, evaluation, settings, sharding


def infer(
    *,
    model,
    dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    output_dir: str,
    mode: str = "predict",
    trainable: Sequence[str] = (),
    prompt_file: str | None = None,
    adapter: str | None = None,
    run_dir: str | None = None,
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> list[str]:
  """Runs the model over one split of a task or mixture.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    dataset_cfg: what to run on.
    restore_checkpoint_cfg: the base weights.
    output_dir: where results go.
    mode: "predict" gives texts; "score" gives the targets' log-probabilities.
    trainable: see `eval.evaluate`.
    prompt_file: see `eval.evaluate`.
    adapter: see `application.start`.
    run_dir: see `application.start`.
    random_seed: for initialisation and sampling.
    mesh: makes the device mesh.

  Returns:
    The files that were written.

  Raises:
    UserError: on any bad setting or file.
  """
  if mode not in _FOUND:
    raise errors.UserError(
        f"infer.mode is {mode!r}; it can be {' or '.join(_FOUND)}.")
  applied = application.start(
      model=model, dataset=dataset_cfg, restore=restore_checkpoint_cfg,
      output_dir=output_dir, output_setting="INFER_OUTPUT_DIR",
      trainable=trainable, prompt_file=prompt_file, adapter=adapter,
      run_dir=run_dir,
      random_seed=random_seed, mesh=mesh)
  written = []
  for task, _ in applied.members:
    examples = applied.examples(task)
    lines = [
        json.dumps({**examples.original(i), **found}, ensure_ascii=False)
        + "\n" for i, found in enumerate(_FOUND[mode](applied, task, examples))]
    path = os.path.join(applied.output_dir, f"{task.name}-{mode}.jsonl")
    if jax.process_index() == 0:
      formats.write_whole(path, "".join(lines).encode())
      print(f"{len(lines):,} lines: {os.path.relpath(path)}")
    written.append(path)
  return written


def _predictions(applied, task, examples):
  texts, of_labels = evaluation.predicted(
      applied.runner, task, examples, *applied.arguments)
  found = [{"prediction": text} for text in texts]
  if of_labels is not None:
    found = [{**one, "scores": s} for one, s in zip(found, of_labels)]
  return found


def _scores(applied, task, examples):
  del task
  weights = applied.weights
  return [{"score": score} for score in applied.runner.score(
      weights.trainable, weights.frozen, examples, applied.dataset)]


_FOUND = {"predict": _predictions, "score": _scores}

if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning import infer as importable

  command_line.main(importable.infer)
