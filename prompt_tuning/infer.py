"""Predictions or scores for a file of inputs: `python -m prompt_tuning.infer`.

Writes `{task}-{mode}.jsonl` to INFER_OUTPUT_DIR, one line an example in the
order of the data: the example's own fields and `prediction` or `score`.
"""

from collections.abc import Callable, Sequence
import json
import os

import jax

from prompt_tuning import command_line, errors, formats
from prompt_tuning.train import evaluation, inputs, settings, setup, sharding

MODES = ("predict", "score")


def infer(
    *,
    model,
    dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    output_dir: str,
    mode: str = "predict",
    trainable: Sequence[str] = (),
    prompt_file: str | None = None,
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> list[str]:
  """Runs the model over one split of a task or mixture.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    dataset_cfg: what to run on.
    restore_checkpoint_cfg: the base weights.
    output_dir: where results go.
    mode: "predict" decodes; "score" gives the targets' log-probabilities.
    trainable: see `eval.evaluate`.
    prompt_file: see `eval.evaluate`.
    random_seed: for initialisation and sampling.
    mesh: makes the device mesh.

  Returns:
    The files that were written.

  Raises:
    UserError: on any bad setting or file.
  """
  if mode not in MODES:
    raise errors.UserError(
        f"infer.mode is {mode!r}; it can be {' or '.join(MODES)}.")
  sharding.initialize_distributed()
  mesh = mesh()
  sharding.check_batch_size(dataset_cfg.batch_size, mesh)
  members = inputs.members(dataset_cfg)
  model.check_lengths(dataset_cfg.task_feature_lengths)
  output_dir = setup.make_folder(output_dir, "INFER_OUTPUT_DIR")
  rng = jax.random.PRNGKey(random_seed)
  weights = setup.prepare(
      model, restore_checkpoint_cfg, trainable, mesh, rng, prompt_file)
  runner = evaluation.Runner(model, mesh)
  written = []
  for task, _ in members:
    examples = inputs.tokenized(task, dataset_cfg, model, output_dir)
    if mode == "predict":
      results = [
          model.output_vocabulary.decode(ids.tolist())
          for ids in runner.predict(
              weights.trainable, weights.frozen, examples, dataset_cfg, rng)]
    else:
      results = runner.score(
          weights.trainable, weights.frozen, examples, dataset_cfg)
    lines = [
        json.dumps({**examples.original(i), _FIELD[mode]: result},
                   ensure_ascii=False) + "\n"
        for i, result in enumerate(results)]
    path = os.path.join(output_dir, f"{task.name}-{mode}.jsonl")
    if jax.process_index() == 0:
      formats.write_whole(path, "".join(lines).encode())
      print(f"{len(lines):,} lines: {os.path.relpath(path)}")
    written.append(path)
  return written


_FIELD = {"predict": "prediction", "score": "score"}

if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning import infer as importable

  command_line.main(importable.infer)
