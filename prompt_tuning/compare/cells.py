"""One method on one task with one seed: trained, put to use, judged.

Each of the steps is what a command does; what it leaves in the cell's folder
is what the next one reads, so that a cell goes on where it was interrupted:

    trained/          MODEL_DIR of `train`
    judged/           the output folder of `eval` or `scripts.generate`
    result.json       the figure, and what it was made with
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import numbers
import os
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import command_line, formats
from prompt_tuning import eval as eval_command
from prompt_tuning.checkpoints import runs
from prompt_tuning.compare import benchmarks, entries, results
from prompt_tuning.scripts import generate
from prompt_tuning.train import exporting, inputs, loop, settings, setup
from prompt_tuning.train import state as state_lib


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all cells have in common.

  Attributes:
    checkpoint: the base weights, INITIAL_CHECKPOINT_PATH.
    batch_size: of training.
    eval_batch_size: of evaluation and generation.
    num_examples: to judge by, spread over the split; None for all.
    cache_dir: of tokenised examples.
  """

  checkpoint: str
  batch_size: int
  eval_batch_size: int
  num_examples: int | None
  cache_dir: str


@dataclasses.dataclass(frozen=True)
class Cell:
  """A place in the comparison.

  Attributes:
    method: name.
    task: name.
    seed: of initialisation, the order of the data, and samples.
    method_entries: see `entries`.
    task_entries: see `entries`.
    train_steps: of the run.
    folder: what it leaves.
  """

  method: str
  task: str
  seed: int
  method_entries: entries.Entries
  task_entries: entries.Entries
  train_steps: int
  folder: str

  def path(self, *names: str) -> str:
    """A place in the cell's folder."""
    return os.path.join(self.folder, *names)


def run(cell: Cell, setting: Setting) -> dict[str, Any]:
  """The cell's record, made now or read.

  Raises:
    UserError: on any bad setting or file; and if the folder has a cell of
      other settings.
  """
  def make():
    os.makedirs(cell.folder, exist_ok=True)
    trained = train(cell, setting)
    judged = judge(cell, setting)
    jax.clear_caches()  # programs of a cell are of no use to the next one
    return {
        "method": cell.method, "task": cell.task, "seed": cell.seed, **judged,
        "trained parameters": trained}

  facts = {
      "method_entries": cell.method_entries, "task_entries": cell.task_entries,
      "train_steps": cell.train_steps, **dataclasses.asdict(setting)}
  del facts["cache_dir"]
  return results.kept(cell.folder, facts, "COMPARE_OUTPUT_DIR", make)


def look(cell: Cell, setting: Setting) -> tuple[str, bool]:
  """The name of the task, and whether the method trains anything.

  Raises:
    UserError: if the gin files do not go together.
  """
  # A frozen model has no optimizer, and the files of a run ask for one.
  _configure(cell, setting, "runs/prompt_finetune.gin", {
      **_train_macros(cell, setting), "OPTIMIZER": None})
  with gin.config_scope("train"):
    dataset = gin.get_configurable(settings.DatasetConfig)()
  return inputs.task_name(dataset), bool(
      command_line.macro("TRAINABLE_REGEX"))


def train(cell: Cell, setting: Setting) -> int:
  """Trains, unless the method has nothing to; gives how many parameters.

  An interrupted run goes on from its checkpoint.
  """
  if not look(cell, setting)[1]:
    return 0
  _configure(cell, setting, "runs/prompt_finetune.gin", _train_macros(
      cell, setting))
  bound = gin.get_bindings(loop.train)
  shapes, _ = bound["model"].abstract()
  trainable, _ = state_lib.split(shapes, bound["trainable"])
  if not os.path.exists(cell.path("trained", "done")):
    command_line.call(loop.train)
    formats.write_whole(cell.path("trained", "done"), b"")
  return setup.size(trainable)


def judge(cell: Cell, setting: Setting) -> dict[str, Any]:
  """The figure of what was trained.

  Returns:
    `metric`, the task's first, and its `value`; `other metrics` of the task by
    name, if there are any; and, where each problem has a value, `values` in
    percent.
  """
  name, _ = look(cell, setting)
  macros = {
      "BATCH_SIZE": setting.eval_batch_size, "RANDOM_SEED": cell.seed,
      "NUM_EXAMPLES": setting.num_examples, "BUCKET_LENGTHS": "auto"}
  is_code = name in benchmarks.NAMES
  keep, more = trained_result(cell, setting)
  run_file, run_dir_file, folder = (
      ("generate", "trained_generate", "GENERATE_OUTPUT_DIR") if is_code
      else ("prompt_eval", "trained_eval", "EVAL_OUTPUT_DIR"))
  _configure(
      cell, setting,
      f"runs/{run_dir_file if 'RUN_DIR' in more else run_file}.gin",
      {folder: cell.path("judged"), **macros, **more}, keep)
  if is_code:
    command_line.call(generate.generate)
    dataset = gin.get_configurable(settings.DatasetConfig)()
    return benchmarks.score(
        inputs.members(dataset)[0][0], dataset.split, cell.path("judged"))
  found = command_line.call(eval_command.evaluate)
  return _figures(found) | _values_of(cell, name)


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
  """What `eval` found, without the texts that some tasks show."""
  task = next(iter(results)).rpartition("/")[0]
  (metric, value), *others = (
      (name.removeprefix(f"{task}/"), value) for name, value in results.items()
      if isinstance(value, numbers.Real))
  found = {"metric": metric, "value": value}
  return found | ({"other metrics": dict(others)} if others else {})


def trained_result(cell: Cell, setting: Setting):
  """How what was trained is put to use.

  Returns:
    Which of the method's files are needed, and macros.
  """
  base = {"INITIAL_CHECKPOINT_PATH": setting.checkpoint, "PROMPT_FILE": None}
  trained = lambda *names: cell.path("trained", *names)  # noqa: E731
  if os.path.isdir(trained(exporting.MODEL_FOLDER)):
    return entries.is_model, base | {
        "INITIAL_CHECKPOINT_PATH": trained(exporting.MODEL_FOLDER),
        "VOCABULARY_FILE": setting.checkpoint}
  if os.path.isdir(trained(exporting.ADAPTER_FOLDER)) and not all(
      entries.is_model(entry) for entry in cell.method_entries
      if isinstance(entry, str)):
    return entries.is_model, base | {
        "ADAPTER": trained(exporting.ADAPTER_FOLDER)}
  if os.path.isfile(trained("prompt.safetensors")):
    return bool, base | {"PROMPT_FILE": trained("prompt.safetensors")}
  if os.path.isfile(trained("prompt.npy")) and not _is_prefix(trained()):
    # The table alone, however it was parametrised in training.
    return entries.is_model, base | {
        "PROMPT_FILE": trained("prompt.npy"),
        "PROMPT_LENGTH": len(np.load(trained("prompt.npy"), mmap_mode="r"))}
  if os.path.exists(trained("done")):  # a prefix, prompts of layers, …
    return bool, base | {"RUN_DIR": trained()}
  return bool, base


def _is_prefix(run_dir: str) -> bool:
  """Whether a run's `prompt.npy` is of keys and values, not of embeddings."""
  return any("/prefix/" in path for path in runs.trained(run_dir)[0])


def _train_macros(cell: Cell, setting: Setting) -> dict[str, Any]:
  steps = cell.train_steps
  return {
      "INITIAL_CHECKPOINT_PATH": setting.checkpoint,
      "MODEL_DIR": cell.path("trained"), "TRAIN_STEPS": steps,
      "BATCH_SIZE": setting.batch_size, "RANDOM_SEED": cell.seed,
      "SAVE_PERIOD": max(steps // 4, 1), "EVAL_PERIOD": steps,
      "LOG_PERIOD": max(steps // 10, 1), "BUCKET_LENGTHS": "auto"}


def _configure(
    cell: Cell, setting: Setting, run_file: str, macros: Mapping[str, Any],
    keep=bool,
) -> None:
  """Reads the gin files of one step, in the order that they refine another."""
  gin.clear_config()
  method = entries.flags(cell.method_entries, keep)
  task = entries.flags(cell.task_entries)
  files, bindings = [], []
  for flag in (*method, *task, *entries.flags([run_file])):
    (files if flag.startswith("--gin_file") else bindings).append(flag)
  if run_file == "runs/prompt_finetune.gin":
    # Nothing is judged while training.
    bindings += [
        f"--gin_bindings=train_script.train.{name}_dataset_cfg = None"
        for name in ("train_eval", "infer_eval")]
  command_line.configure([
      *files, *(f"--gin.{name}={value!r}" for name, value in macros.items()),
      *bindings, entries.CACHE.format(setting.cache_dir)])


def _values_of(cell: Cell, name: str) -> dict[str, Sequence[float]]:
  """100 for each example whose label is right, 0 for each other."""
  task = inputs.members(gin.get_configurable(settings.DatasetConfig)())[0][0]
  if not task.label_texts:
    return {}
  folder = cell.path("judged", "inference_eval")
  [file] = [one for one in sorted(os.listdir(folder))
            if one.startswith(f"{name}-0")]
  with open(os.path.join(folder, file), encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
  return {"values": [
      100.0 * (row["prediction"] == row["target"]) for row in rows]}
