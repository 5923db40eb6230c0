"""Several prompts trained together: `python -m prompt_tuning.train.sweep`.

The members of a sweep have their own seeds, learning rates, initialisers or
tasks and share one frozen network, which each step reads once (see
`train.stacked`). Each member ends as its own single run would. In MODEL_DIR:

    seed=0_learning_rate=0.3/…    of each member, what `train.loop` describes,
                                  but for the checkpoint
    checkpoint_N/                 of all members together
    sweep.md sweep.json sweep.png the members side by side
    config.gin  versions.json  train.jsonl (mean loss of the members)
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prompt_tuning import errors, prompts
from prompt_tuning.checkpoints import runs
from prompt_tuning.train import (
  comparison,
  evaluation,
  exporting,
  inputs,
  loop,
  members,
  progress,
  reporting,
  settings,
  setup,
  sharding,
  stacked,
  stopping,
)
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib


def train_sweep(
    *,
    model,
    optimizer: Callable[[], optax.GradientTransformation],
    train_dataset_cfg: settings.DatasetConfig,
    train_eval_dataset_cfg: settings.DatasetConfig | None = None,
    infer_eval_dataset_cfg: settings.DatasetConfig | None = None,
    random_seed: int = 0,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    initializers: Mapping[str, prompts.Initializer] | None = None,
    tasks: Sequence[Any] | None = None,
    combine: str = "product",
    **options,
) -> list[dict[str, Any]]:
  """Trains a prompt for each combination of some settings, all at once.

  Args:
    model: see `loop.train`.
    optimizer: makes the optimizer, from what gin binds.
    train_dataset_cfg: see `loop.train`; `tasks` replace its task.
    train_eval_dataset_cfg: see `loop.train`; `tasks` replace its task.
    infer_eval_dataset_cfg: see `loop.train`; `tasks` replace its task.
    random_seed: of all members, if there are no `seeds`.
    seeds: of initialisation and order of the data. Members of one seed and
      task share their batches; set `train/utils.DatasetConfig.seed` to have
      one order of the data for all seeds.
    learning_rates: values of gin's LEARNING_RATE.
    initializers: of the prompt, by name.
    tasks: names or task objects.
    combine: see `members.combinations`.
    **options: see `train_members`.

  Returns:
    See `train_members`.

  Raises:
    UserError: see `loop.train`, and on lists that do not go together.
  """
  known = inspect.signature(train_members).parameters
  for name in options.keys() - known.keys():
    raise errors.UserError(
        f"train_sweep has no parameter {name!r}; it has "
        f"{', '.join(sorted(known.keys() - {'together'}))}.")
  optimizers = {
      rate: members.optimizer_at(optimizer, rate)
      for rate in learning_rates or ()}
  models = {
      name: members.with_initializer(model, initializer)
      for name, initializer in (initializers or {}).items()}
  plain = optimizer() if learning_rates is None else None

  def make(chosen):
    data = [train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg]
    if "task" in chosen:
      data = [members.on_task(one, chosen["task"]) for one in data]
      chosen = chosen | {"task": inputs.task_name(data[0])}
    return members.Member(
        members.folder_name(chosen), chosen,
        models.get(chosen.get("initializer"), model),
        optimizers.get(chosen.get("learning_rate"), plain),
        chosen.get("seed", random_seed), *data)

  return train_members([make(chosen) for chosen in members.combinations(
      combine, {"seed": seeds, "learning_rate": learning_rates,
                "initializer": initializers, "task": tasks})], **options)


def train_members(
    together: Sequence[members.Member],
    *,
    model_dir: str,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    save_checkpoint_cfg: settings.SaveCheckpointConfig,
    trainable: Sequence[str],
    total_steps: int,
    eval_period: int = 1000,
    eval_steps: int | None = None,
    log_period: int = 20,
    num_microbatches: int = 1,
    use_dropout: bool = False,
    members_at_once: int | None = None,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> list[dict[str, Any]]:
  """Trains members together, and goes on where an earlier run stopped.

  A member whose loss is not finite for 3 steps in a row stays as it is from
  there on; the others go on.

  Args:
    together: K members.
    model_dir: folder of the sweep; made if absent.
    restore_checkpoint_cfg: see `loop.train`; so are all others.
    save_checkpoint_cfg: of all members together.
    trainable: patterns of parameter paths.
    total_steps: the step to stop at.
    eval_period: steps between evaluations, which take the members in turn.
    eval_steps: at most this many batches of teacher-forced evaluation.
    log_period: steps that one line of a log averages.
    num_microbatches: parts of each member's batch.
    use_dropout: whether frozen layers drop activations.
    members_at_once: see `stacked.make_train_step`.
    mesh: makes the device mesh.

  Returns:
    For each member `member` (its name), its settings, `training loss` (since
    the evaluation before the last) and the last evaluation's metrics; a
    member that stayed as it was also has `stopped at`, its last step.

  Raises:
    UserError: see `loop.train`; on members that are not different; and when
      the last member's loss is not finite.
  """
  # ---------------------------------------------------------------- set-up
  _check_names(together)
  if save_checkpoint_cfg.best is not None:
    raise errors.UserError(
        f"KEEP_BEST is {save_checkpoint_cfg.best!r}, which is for single runs: "
        "leave it None in a sweep; numpy_checkpoints/ have the prompts of each "
        "save.")
  first = together[0]
  loop.check_numbers(
      first.train, EVAL_PERIOD=eval_period, LOG_PERIOD=log_period,
      TRAIN_STEPS=total_steps, NUM_MICROBATCHES=num_microbatches,
      MEMBERS_AT_ONCE=members_at_once or 1)
  loop.check_patterns(trainable)
  sharding.initialize_distributed()
  mesh = mesh()
  for one in together:
    loop.check_datasets((one.train, one.loss, one.metrics), one.model, mesh)
  model_dir = setup.make_folder(model_dir, "MODEL_DIR")
  data, examples = _data(together, mesh, model_dir)
  evaluators = _evaluators(together, mesh, model_dir, eval_steps)
  weights = _weights(together, restore_checkpoint_cfg, trainable, mesh)
  frozen = weights.frozen
  state_shapes = setup.state_shapes(
      weights, first.optimizer, mesh, stacked=True)

  # ---------------------------------------------------- compile and restore
  checkpoints = runs.RunCheckpoints(model_dir, keep=save_checkpoint_cfg.keep)
  identity = {"base_fingerprint": weights.base_fingerprint,
              "encoder": getattr(
                  first.model.instance_encoder, "fingerprint", ""),
              "members": [one.name for one in together]}
  restored = checkpoints.latest(state_shapes)
  position = {}
  if restored is None:
    state = setup.initial_state(
        weights, first.optimizer, state_shapes, stacked=True)
  else:
    _, state, position = restored
    loop.check_same_base(position, identity, model_dir)
    _check_same_members(position, identity, model_dir)
    data.set_state(position["data"])
  first_step = int(state.step)
  rngs = jnp.stack([jax.random.PRNGKey(one.seed) for one in together])
  train_step = step_lib.compiled_update(
      stacked.make_train_step(
          first.model, [one.optimizer for one in together], num_microbatches,
          use_dropout, data.is_one, members_at_once), state_shapes)

  # ------------------------------------------------------------------ loop
  with (
      reporting.Reporter(
          model_dir, total_steps, first_step=first_step,
          initial_step=weights.base_step) as reporter,
      progress.Progress(
          together, evaluators, reporter, model_dir, log_period,
          position.get("progress")) as run,
      stopping.StopRequest() as stop,
      checkpoints,
  ):
    exporting.write_configuration(model_dir)
    loop.note_sizes(reporter, state.trainable, frozen, first_step)
    for one in examples:
      for sentence in inputs.truncation_notes(one):
        reporter.note(sentence)

    def save(step):
      checkpoints.save(step, state, {
          "data": data.get_state(), "progress": run.state(), **identity},
          run.writer(step, state.trainable, weights, total_steps))

    for step in range(first_step + 1, total_steps + 1):
      state, metrics = train_step(
          state, frozen, data.next_on(mesh), rngs, run.is_running)
      run.add(step, metrics)
      if not run.is_running.any():
        save(step)
        raise errors.UserError(
            "The loss of every member was not finite at "
            f"{loop.MAX_BAD_STEPS} steps in a row, the last one's up to step "
            f"{step}: their last good states are saved in {model_dir}; lower "
            "the learning rates, or check the data of these steps.")
      reporter.advance(step)
      is_last = step == total_steps
      if is_last or step % eval_period == 0:
        run.evaluate(step, state.trainable, frozen)
      is_stopping = stop.agreed()
      if is_last or is_stopping or step % save_checkpoint_cfg.period == 0:
        save(step)
      if is_stopping and not is_last:
        checkpoints.wait()
        reporter.note(
            f"Stopped at step {step} on request; the same command goes on "
            "from here.")
        stop.leave()
    if first_step >= total_steps:  # a sweep that is done is only evaluated
      run.evaluate(first_step, state.trainable, frozen)
    records = run.records()
    reporter.note("\n" + comparison.write(model_dir, records))
  return records


def _check_names(together: Sequence[members.Member]):
  names = [one.name for one in together]
  twice = [name for name in names if names.count(name) > 1]
  if twice or not names:
    raise errors.UserError(
        f"Two members of the sweep are both {twice[0]}: give tasks and "
        "initialisers different names." if twice else
        "The sweep has no members: give at least one value of a setting.")


def _check_same_members(position, identity, model_dir):
  if position.get("members") != identity["members"]:
    raise errors.UserError(
        f"The sweep in {model_dir} has the members "
        f"{', '.join(position.get('members', ['of a single run']))}: go on "
        "with the same, or give another MODEL_DIR.")


def _data(together, mesh, model_dir):
  """The members' batches, and all examples once."""
  examples, streams, of_member = {}, {}, []
  for one in together:
    task = inputs.task_name(one.train)
    if task not in examples:
      examples[task] = inputs.train_examples(one.train, one.model, model_dir)
    seed = one.seed if one.train.seed is None else one.train.seed
    if (task, seed) not in streams:
      streams[task, seed] = inputs.train_batches(
          examples[task], one.train, mesh, seed, one.model.features)
    of_member.append(list(streams).index((task, seed)))
  return (stacked.Batches(list(streams.values()), of_member),
          [one for found in examples.values() for one, _ in found])


def _evaluators(together, mesh, model_dir, eval_steps):
  """Each member's evaluator; they share programs, and data of one task."""
  runner = evaluation.Runner(together[0].model, mesh)
  of_task, found = {}, []
  for one in together:
    task = inputs.task_name(one.train)
    rng = jax.random.PRNGKey(one.seed)
    if task not in of_task:
      of_task[task] = evaluation.Evaluator(
          one.model, mesh, model_dir, one.loss, one.metrics, eval_steps, rng,
          runner)
    found.append(of_task[task].of_run(os.path.join(model_dir, one.name), rng))
  return found


def _weights(together, restore, patterns, mesh) -> setup.Weights:
  """The weights, with the members' initial trainable trees stacked."""
  weights = setup.prepare(
      together[0].model, restore, patterns, mesh,
      jax.random.PRNGKey(together[0].seed))
  start = state_lib.flatten(weights.trainable)
  make, trees = {}, [weights.trainable]
  for one in together[1:]:
    if id(one.model) not in make:
      make[id(one.model)] = setup.initializer(
          one.model, weights.initialized, weights.trainable_shardings)
    values = {**start, **make[id(one.model)](jax.random.PRNGKey(one.seed))}
    values |= setup.started_prefixes(one.model, values, weights)
    trees.append(state_lib.unflatten(values))
  shardings = stacked.shardings(weights.trainable_shardings)
  return dataclasses.replace(
      weights, trainable_shardings=shardings,
      trainable=jax.jit(stacked.stack, out_shardings=shardings)(trees))


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning import command_line
  from prompt_tuning.train import sweep as importable

  command_line.main(importable.train_sweep)
