"""Training, top to bottom: `python -m prompt_tuning.train --gin_file=…`.

Everything that a run writes lies in its MODEL_DIR:

    config.gin  versions.json     what was run, and with which packages
    checkpoint_N/                 trainable tree, optimizer, step, data position
    numpy_checkpoints/checkpoint_N/encoder.prompt.prompt.prompt   the original's
    prompt.npy  prompt.json       the newest prompt and its card
    train.jsonl  inference_eval/  tensorboard/  learning_curve.png
    hugging_face/                 the whole model, when all of it was trained
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import signal
import threading
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning import errors, formats, versions
from prompt_tuning.checkpoints import base, hugging_face, runs
from prompt_tuning.formats import card, npy
from prompt_tuning.train import (
  adafactor,
  evaluation,
  inputs,
  reporting,
  settings,
  setup,
  sharding,
)
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

MAX_BAD_STEPS = 3
EXPORT = "hugging_face"


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
  for name, value in (
      ("EVAL_PERIOD", eval_period), ("LOG_PERIOD", log_period),
      ("TRAIN_STEPS", total_steps), ("NUM_MICROBATCHES", num_microbatches)):
    settings.check_positive(name, value)
  sharding.initialize_distributed()
  mesh = mesh()
  if train_dataset_cfg.batch_size % num_microbatches:
    raise errors.UserError(
        f"BATCH_SIZE {train_dataset_cfg.batch_size} is not divisible by "
        f"NUM_MICROBATCHES {num_microbatches}: change one of them.")
  for dataset in (
      train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg):
    if dataset is not None:
      # Before a folder is made: a name that does not exist, a wrong size.
      inputs.members(dataset)
      sharding.check_batch_size(dataset.batch_size, mesh)
  model_dir = setup.make_folder(model_dir, "MODEL_DIR")
  examples = inputs.train_examples(train_dataset_cfg, model, model_dir)
  data = inputs.train_batches(
      examples, train_dataset_cfg, mesh,
      random_seed if train_dataset_cfg.seed is None
      else train_dataset_cfg.seed)
  rng = jax.random.PRNGKey(random_seed)
  evaluator = evaluation.Evaluator(
      model, mesh, model_dir, train_eval_dataset_cfg, infer_eval_dataset_cfg,
      eval_steps, rng)
  weights = setup.prepare(
      model, restore_checkpoint_cfg, trainable, mesh, rng)
  frozen = weights.frozen
  state, state_shapes = _initial_state(weights, optimizer, mesh)

  # ---------------------------------------------------- compile and restore
  checkpoints = runs.RunCheckpoints(model_dir, keep=save_checkpoint_cfg.keep)
  identity = {"base_fingerprint": weights.base_fingerprint}
  restored = checkpoints.latest(state_shapes)
  results, unlogged = {}, None
  if restored is not None:
    _, state, position = restored
    _check_same_base(position, identity, model_dir)
    data.set_state(position["data"])
    results, unlogged = position["results"], position.get("unlogged")
  first_step = int(state.step)
  train_step = jax.jit(
      step_lib.make_train_step(
          model, optimizer, num_microbatches, use_dropout),
      donate_argnums=0, compiler_options=step_lib.compiler_options(),
      out_shardings=(jax.tree.map(lambda s: s.sharding, state_shapes), None))

  # ------------------------------------------------------------------ loop
  with (
      reporting.Reporter(
          model_dir, total_steps, first_step=first_step,
          initial_step=weights.base_step) as reporter,
      _StopRequest() as stop,
      checkpoints,
  ):
    _write_configuration(model_dir)
    _note_sizes(reporter, state.trainable, frozen, first_step)
    for one, _ in examples:
      for sentence in inputs.truncation_notes(one):
        reporter.note(sentence)

    meter = _Meter(reporter, log_period, unlogged)

    def save():
      at = int(state.step)
      checkpoints.save(at, state, {
          "data": data.get_state(), "results": results,
          "unlogged": meter.unlogged(), **identity})
      _export(model_dir, at, state.trainable, weights, train_dataset_cfg,
              results, total_steps)

    while first_step < total_steps:  # a run that is done is only evaluated
      batch = sharding.put_batch(next(data), mesh)
      state, metrics = train_step(state, frozen, batch, rng)
      step = first_step + meter.count + 1
      if meter.add(step, metrics) >= MAX_BAD_STEPS:
        bad_step = meter.last_step
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
        meter.flush()
        results = evaluator.run(step, state.trainable, frozen, reporter)
        reporting.learning_curve(
            model_dir, os.path.join(model_dir, "learning_curve.png"))
      stopping = stop.agreed()
      if is_last or stopping or step % save_checkpoint_cfg.period == 0:
        save()
      if is_last:
        break
      if stopping:
        checkpoints.wait()
        reporter.note(
            f"Stopped at step {step} on request; the same command goes on "
            "from here.")
        stop.leave()
    if first_step >= total_steps:
      results = evaluator.run(
          first_step, state.trainable, frozen, reporter)
    if not frozen:
      _export_model(model_dir, model, state.trainable)
  return results


def _initial_state(weights, optimizer, mesh):
  """A fresh `TrainState` on its devices, and its shapes with shardings."""
  optimizer_shapes = jax.eval_shape(optimizer.init, weights.trainable)
  shardings = step_lib.TrainState(
      sharding.replicated(mesh), weights.trainable_shardings,
      sharding.state_shardings(
          optimizer_shapes, weights.trainable, weights.trainable_shardings,
          mesh))

  def initialize(trainable):
    optimizer_state = optimizer.init(trainable)
    if weights.base_step:
      # T5X's Adafactor goes on counting at the checkpoint's step.
      optimizer_state = adafactor.counting_from(
          optimizer_state, weights.base_step)
    return step_lib.TrainState(
        jnp.int32(weights.base_step), trainable, optimizer_state)

  state = jax.jit(initialize, out_shardings=shardings)(weights.trainable)
  shapes = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=where), state, shardings)
  return state, shapes


def _check_same_base(position, identity, model_dir):
  if position.get("base_fingerprint") != identity["base_fingerprint"]:
    raise errors.UserError(
        f"The run in {model_dir} was started from other base weights than "
        "INITIAL_CHECKPOINT_PATH: give the same, or another MODEL_DIR.")


def _write_configuration(model_dir: str):
  if jax.process_index() == 0:
    formats.write_whole(
        os.path.join(model_dir, "config.gin"), gin.config_str().encode())
    formats.write_whole(
        os.path.join(model_dir, "versions.json"),
        json.dumps(versions.installed(), indent=2).encode())


def _note_sizes(reporter, trainable, frozen, first_step):
  trained, kept = setup.size(trainable), setup.size(frozen)
  reporter.note(
      f"{trained:,} trained and {kept:,} frozen parameters "
      f"({trained / max(trained + kept, 1):.4%} trained); "
      f"starting at step {first_step}.")


def _prompts_in(params) -> dict[str, Any]:
  """The prompts among some parameters, by path."""
  return {path: value for path, value in state_lib.flatten(params).items()
          if "prompt" in path}


def _export(model_dir, step, trainable, weights, dataset, results, total):
  """Writes trained prompts as `.npy`, the newest one with its card."""
  prompts = _prompts_in(trainable)
  if not prompts:
    return
  runs.save_numpy(model_dir, step, prompts)
  only = list(prompts.values())
  name, fingerprint = weights.base_name, weights.base_fingerprint
  table = state_lib.flatten(trainable).get(base.EMBEDDING)
  if table is not None:  # the base was trained too; the prompt is for that one
    name, fingerprint = EXPORT, card.fingerprint(_on_host(table))
  if jax.process_index() == 0 and len(only) == 1 and only[0].ndim == 2:
    path = os.path.join(model_dir, "prompt.npy")
    npy.write(path, np.asarray(only[0]))
    card.write_card(
        path, base_model=name, base_fingerprint=fingerprint,
        task=inputs.task_name(dataset), metric=results, step=step,
        settings={"batch_size": dataset.batch_size,
                  "task_feature_lengths": dict(dataset.task_feature_lengths),
                  "total_steps": total})


def _export_model(model_dir, model, params):
  """Writes a wholly trained T5 as a directory that anything can load."""
  prompts = _prompts_in(params)  # have files of their own
  params = _on_host(state_lib.unflatten({
      path: value for path, value in state_lib.flatten(params).items()
      if path not in prompts}))
  if jax.process_index() == 0:
    hugging_face.save_hugging_face_t5(
        os.path.join(model_dir, EXPORT), params,
        dataclasses.asdict(model.module.config), "float32")


def _on_host(tree):
  """Whole arrays, wherever their parts are; all processes call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


class _Meter:
  """Averages metrics over `period` steps without waiting for the device.

  A step's numbers are read only after the next step was dispatched, so the
  device never idles for the log. What no line of the log holds yet goes into
  the checkpoint: a resumed run logs what an unbroken one does.
  """

  def __init__(self, reporter, period: int, unlogged: dict | None = None):
    self.count = 0
    self.last_step = 0
    self._reporter = reporter
    self._period = period
    self._pending: list[tuple[int, Any]] = []
    self._sums: dict[str, float] = {}
    self._steps = 0
    self._bad = 0
    if unlogged:
      self._sums, self._steps = dict(unlogged["sums"]), unlogged["steps"]

  def unlogged(self) -> dict:
    """The sums since the last line, to give to the next `_Meter`."""
    self._read_pending()
    return {"sums": self._sums, "steps": self._steps}

  def add(self, step: int, metrics) -> int:
    """Takes one step's metrics; gives how many steps in a row were bad."""
    self.count += 1
    self._pending.append((step, metrics))
    if len(self._pending) > 1:
      self._read(*self._pending.pop(0))
    return self._bad

  def flush(self):
    """Reads what is pending and reports a part of a period."""
    self._read_pending()
    self._report(self.last_step)

  def _read_pending(self):
    while self._pending:
      self._read(*self._pending.pop(0))

  def _read(self, step, metrics):
    metrics = {name: float(value) for name, value in metrics.items()}
    finite = bool(metrics.pop("is_finite"))
    self._bad = 0 if finite else self._bad + 1
    self.last_step = step
    if not finite:
      self._reporter.note(
          f"Step {step} was skipped: its loss or gradient is not finite.")
      return
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + value
    self._steps += 1
    if step % self._period == 0:
      self._report(step)

  def _report(self, step):
    if not self._steps:
      return
    tokens = max(self._sums["tokens"], 1.0)
    self._reporter.train(step, {
        "loss": self._sums["loss"] / tokens,
        "z_loss": self._sums["z_loss"] / tokens,
        "token_accuracy": 100.0 * self._sums["correct"] / tokens,
        "gradient_norm": self._sums["gradient_norm"] / self._steps,
    })
    self._sums, self._steps = {}, 0


class _StopRequest:
  """SIGTERM and Ctrl-C end a run after the step at hand; twice, at once."""

  def __init__(self):
    self._signal = None
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *unused):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    del frame
    if self._signal is not None:
      raise KeyboardInterrupt
    self._signal = number

  def agreed(self) -> bool:
    """Whether any process was asked to stop; the same answer on all."""
    mine = self._signal is not None
    if jax.process_count() == 1:
      return mine
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(mine)).any())

  def leave(self):
    """Ends the process: status 0 after SIGTERM, 130 after Ctrl-C."""
    raise SystemExit(130 if self._signal == signal.SIGINT else 0)
