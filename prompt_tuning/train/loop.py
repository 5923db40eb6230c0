"""Training, top to bottom: `python -m prompt_tuning.train --gin_file=…`.

Everything that a run writes lies in its MODEL_DIR:

    config.gin  versions.json     what was run, and with which packages
    checkpoint_N/                 trainable tree, optimizer, step, data position
    numpy_checkpoints/checkpoint_N/encoder.prompt.prompt.prompt   the original's
    prompt.npy  prompt.json       the newest prompt and its card
    prompt.safetensors            instead, if prompts are made per example
    adapter/                      the newest LoRA, (IA)3 or, of a decoder-only
                                  model, prefix, as PEFT has it
    train.jsonl  inference_eval/  tensorboard/  learning_curve.png
    hugging_face/                 the whole model, when the base was trained too
    best/                         such a folder, of the best evaluation, if
                                  KEEP_BEST names a metric
"""

from collections.abc import Callable, Sequence
import os

import gin
import jax
import optax

from prompt_tuning import errors
from prompt_tuning.checkpoints import runs
from prompt_tuning.train import best as best_lib
from prompt_tuning.train import (
  epochs,
  evaluation,
  exporting,
  inputs,
  meter,
  reporting,
  settings,
  setup,
  sharding,
  stopping,
)
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

MAX_BAD_STEPS = 3


@gin.configurable(module="train_script")
def train(
    *,
    model,
    model_dir: str,
    train_dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    save_checkpoint_cfg: settings.SaveCheckpointConfig,
    trainable: Sequence[str],
    optimizer: optax.GradientTransformation,
    total_steps: int,
    train_eval_dataset_cfg: settings.DatasetConfig | None = None,
    infer_eval_dataset_cfg: settings.DatasetConfig | None = None,
    eval_period: int = 1000,
    eval_steps: int | None = None,
    log_period: int = 20,
    num_microbatches: int = 1,
    use_dropout: bool = False,
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> dict[str, float]:
  """Trains what `trainable` matches, and goes on where an earlier run stopped.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    model_dir: folder of the run; made if absent.
    train_dataset_cfg: training data.
    restore_checkpoint_cfg: base weights.
    save_checkpoint_cfg: when to save.
    trainable: patterns of parameter paths, see `state.split`.
    optimizer: of the trainable tree.
    total_steps: the step to stop at, counted like T5X from the step of the
      base checkpoint (1,100,000 for the published T5 1.1 LM-adapted ones).
    train_eval_dataset_cfg: data for a teacher-forced loss at each evaluation.
    infer_eval_dataset_cfg: data to decode and score with the task's metrics.
    eval_period: steps between evaluations; the last step is always evaluated.
    eval_steps: at most this many batches of teacher-forced evaluation.
    log_period: steps that one line of the log averages.
    num_microbatches: see `step.make_train_step`.
    use_dropout: see `step.make_train_step`.
    random_seed: of initialisation, dropout and the order of the data.
    mesh: makes the device mesh.

  Returns:
    The last evaluation's metrics, `{task}/{metric}`.

  Raises:
    UserError: on any bad setting or file, and after 3 steps in a row whose
      loss is not finite; the last good state is saved first.
  """
  # ---------------------------------------------------------------- set-up
  check_numbers(
      train_dataset_cfg, EVAL_PERIOD=eval_period, LOG_PERIOD=log_period,
      TRAIN_STEPS=total_steps, NUM_MICROBATCHES=num_microbatches)
  check_patterns(trainable)
  sharding.initialize_distributed()
  mesh = mesh()
  check_datasets(
      (train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg),
      model, mesh)
  model_dir = setup.make_folder(model_dir, "MODEL_DIR")
  examples = inputs.train_examples(train_dataset_cfg, model, model_dir)
  data = inputs.train_batches(
      examples, train_dataset_cfg, mesh,
      random_seed if train_dataset_cfg.seed is None
      else train_dataset_cfg.seed, model.features)
  epoch = epochs.steps_an_epoch(
      sum(len(one) for one, _ in examples), train_dataset_cfg.batch_size)
  rng = jax.random.PRNGKey(random_seed)
  evaluator = evaluation.Evaluator(
      model, mesh, model_dir, train_eval_dataset_cfg, infer_eval_dataset_cfg,
      eval_steps, rng)
  weights = setup.prepare(
      model, restore_checkpoint_cfg, trainable, mesh, rng)
  frozen = weights.frozen
  state_shapes = setup.state_shapes(weights, optimizer, mesh)

  # ---------------------------------------------------- compile and restore
  checkpoints = runs.RunCheckpoints(model_dir, keep=save_checkpoint_cfg.keep)
  identity = {"base_fingerprint": weights.base_fingerprint,
              "encoder": getattr(model.instance_encoder, "fingerprint", "")}
  if checkpoints.steps():
    weights.trainable = None  # what is restored needs its memory
  restored = checkpoints.latest(state_shapes)
  results, unlogged, best_value = {}, None, None
  if restored is None:
    state = setup.initial_state(weights, optimizer, state_shapes)
  else:
    _, state, position = restored
    check_same_base(position, identity, model_dir)
    data.set_state(position["data"])
    results, unlogged = position["results"], position.get("unlogged")
    best_value = position.get("best")
  first_step = int(state.step)
  train_step = step_lib.compiled_update(
      step_lib.make_train_step(
          model, optimizer, num_microbatches, use_dropout), state_shapes)

  # ------------------------------------------------------------------ loop
  with (
      reporting.Reporter(
          model_dir, total_steps, first_step=first_step,
          initial_step=weights.base_step) as reporter,
      stopping.StopRequest() as stop,
      checkpoints,
      best_lib.Best(model_dir, save_checkpoint_cfg.best, best_value) as best,
  ):
    exporting.write_configuration(model_dir)
    note_sizes(reporter, state.trainable, frozen, first_step)
    for one, _ in examples:
      for sentence in inputs.truncation_notes(one):
        reporter.note(sentence)

    averages = meter.Meter(reporter, log_period, unlogged)

    def save(checkpoints=checkpoints, folder=model_dir):
      at = int(state.step)
      checkpoints.save(at, state, {
          "data": data.get_state(), "results": results, "best": best.value,
          "unlogged": averages.unlogged(), **identity}, exporting.writer(
              folder, at, model, state.trainable, weights,
              train_dataset_cfg, results, {"total_steps": total_steps}))

    while first_step < total_steps:  # a run that is done is only evaluated
      batch = sharding.put_batch(next(data), mesh)
      state, metrics = train_step(state, frozen, batch, rng)
      step = first_step + averages.count + 1
      if averages.add(step, metrics) >= MAX_BAD_STEPS:
        bad_step = averages.last_step
        save()
        checkpoints.wait()
        raise errors.UserError(
            f"The loss was not finite at {MAX_BAD_STEPS} steps in a row up to "
            f"step {bad_step}: the last good state is saved in "
            f"{model_dir}; lower the learning rate, or check the data of these "
            "steps.")
      reporter.advance(step)
      is_last = step >= total_steps
      if is_last or step % eval_period == 0:
        reporter.average(
            step, (step - weights.base_step) / epoch, averages.flush())
        results = evaluator.run(step, state.trainable, frozen, reporter)
        reporting.learning_curve(
            model_dir, os.path.join(model_dir, "learning_curve.png"))
        if best.improves(results):
          save(best.checkpoints, best.folder)
      is_stopping = stop.agreed()
      if is_last or is_stopping or step % save_checkpoint_cfg.period == 0:
        save()
      if is_last:
        break
      if is_stopping:
        checkpoints.wait()
        reporter.note(
            f"Stopped at step {step} on request; the same command goes on "
            "from here.")
        stop.leave()
    if first_step >= total_steps:
      results = evaluator.run(
          first_step, state.trainable, frozen, reporter)
    if exporting.changes_base(state.trainable, frozen, weights):
      exporting.write_model(
          model_dir, model, state_lib.merge(state.trainable, frozen), weights,
          save_checkpoint_cfg)
  return results


def check_numbers(
    dataset: settings.DatasetConfig, **numbers: int
):
  """Refuses counts below 1 and a batch that microbatches do not divide."""
  for name, value in numbers.items():
    settings.check_positive(name, value)
  microbatches = numbers["NUM_MICROBATCHES"]
  if dataset.batch_size % microbatches:
    raise errors.UserError(
        f"BATCH_SIZE {dataset.batch_size} is not divisible by "
        f"NUM_MICROBATCHES {microbatches}: change one of them.")


def check_patterns(trainable: Sequence[str]):
  """Refuses to train nothing."""
  if isinstance(trainable, str) or not trainable:
    raise errors.UserError(
        f"TRAINABLE_REGEX is {trainable!r}, so nothing would be trained: give "
        "a list of patterns of parameter paths, such as ['.*/prompt/.*'], or "
        "the gin file of a prompt or another method.")


def check_datasets(
    datasets: Sequence[settings.DatasetConfig | None], model, mesh
):
  """Refuses names and sizes that do not work, before a folder is made."""
  for dataset in datasets:
    if dataset is not None:
      inputs.members(dataset)
      model.check_lengths(dataset.task_feature_lengths)
      sharding.check_batch_size(dataset.batch_size, mesh)


def check_same_base(position, identity, model_dir):
  """Refuses to go on with a run on other base weights or encodings."""
  if position.get("base_fingerprint") != identity["base_fingerprint"]:
    raise errors.UserError(
        f"The run in {model_dir} was started from other base weights than "
        "INITIAL_CHECKPOINT_PATH: give the same, or another MODEL_DIR.")
  if position.get("encoder", "") != identity["encoder"]:
    raise errors.UserError(
        f"The run in {model_dir} was started with another ENCODER: give the "
        "same, or another MODEL_DIR.")


def note_sizes(reporter, trainable, frozen, first_step):
  """Prints how many parameters are trained and how many are not."""
  trained, kept = setup.size(trainable), setup.size(frozen)
  reporter.note(
      f"{trained:,} trained and {kept:,} frozen parameters "
      f"({trained / max(trained + kept, 1):.4%} trained); "
      f"starting at step {first_step}.")
