"""Methods times tasks in one command: trained, put to use, judged, compared.

    python -m prompt_tuning.scripts.compare_methods \\
        --gin_file=prompt_tuning/configs/runs/compare_smollm2_text.gin \\
        --gin.INITIAL_CHECKPOINT_PATH="'SmolLM2-135M-Instruct.Q4_1.gguf'" …

Generated code is run only with EXECUTE_CODE = True, in a cage (see
`prompt_tuning.execution`). In COMPARE_OUTPUT_DIR:

    comparison.md .json .png      the table, all figures, and a picture
    {task}/{method}/seed={n}/     each cell, see `compare.cells`
    cache/  compiled/             tokenised examples; compiled programs

The same command goes on where it was stopped; finished cells are read.
"""

from collections.abc import Mapping, Sequence
import numbers
import os

from prompt_tuning import command_line, errors
from prompt_tuning.compare import benchmarks, cells, entries, results, tables
from prompt_tuning.train import members, settings, setup


def compare(
    *,
    methods: Mapping[str, entries.Entries],
    tasks: Mapping[str, entries.Entries],
    checkpoint: str,
    output_dir: str,
    train_steps: int | Mapping[str, int],
    batch_size: int = 8,
    eval_batch_size: int = 32,
    num_examples: int | None = None,
    seeds: Sequence[int] = (0,),
    execute_code: bool = False,
    only_methods: Sequence[str] | None = None,
    only_tasks: Sequence[str] | None = None,
    picture_axis: str | None = None,
) -> str:
  """Runs every method on every task with every seed.

  Args:
    methods: gin files and bindings by name: the model's file, then those of
      the method. One that trains nothing is judged as it is.
    tasks: gin files and bindings by name: the decoding's and the task's.
    checkpoint: the base weights, INITIAL_CHECKPOINT_PATH.
    output_dir: where results go.
    train_steps: of each run; or, by name, of each run on a task.
    batch_size: of training.
    eval_batch_size: of evaluation and generation.
    num_examples: to judge by, spread over the split; None for all.
    seeds: of initialisation, the order of the data, and samples. A method that
      trains nothing has the first one alone where `eval` is what judges.
    execute_code: whether programs that the models write may be run.
    only_methods: some of the names; None for all.
    only_tasks: some of the names; None for all.
    picture_axis: a number that methods' bindings set, such as PREFIX_LENGTH,
      over which the picture draws a line; None: it has bars.

  Returns:
    The table.

  Raises:
    UserError: on any bad setting or file, with the cell that it is about.
  """
  methods = _chosen(methods, only_methods, "ONLY_METHODS")
  tasks = _chosen(tasks, only_tasks, "ONLY_TASKS")
  steps = {task: train_steps.get(task) if isinstance(train_steps, Mapping)
           else train_steps for task in tasks}
  for name, value in (*((f"TRAIN_STEPS of {task}", one)
                        for task, one in steps.items()),
                      ("BATCH_SIZE", batch_size),
                      ("EVAL_BATCH_SIZE", eval_batch_size),
                      ("NUM_EXAMPLES", num_examples or 1)):
    settings.check_positive(name, value)
  output_dir = setup.make_folder(output_dir, "COMPARE_OUTPUT_DIR")
  results.keep_compiled(output_dir)
  setting = cells.Setting(
      os.path.abspath(checkpoint), batch_size, eval_batch_size, num_examples,
      os.path.join(output_dir, "cache"))
  every = [
      cells.Cell(
          method, task, seed, methods[method], tasks[task], steps[task],
          os.path.join(output_dir, *(
              members.folder_name({name: value}) for name, value in (
                  ("task", task), ("method", method), ("seed", seed)))))
      for seed in seeds for task in tasks for method in methods]
  every = _wanted(every, setting, execute_code)
  places = _places(methods, picture_axis)
  records, table = [], ""
  for number, cell in enumerate(every, start=1):
    print(f"\n[{number} of {len(every)}] {cell.method} on {cell.task}, seed "
          f"{cell.seed}", flush=True)
    try:
      records.append(cells.run(cell, setting))
    except errors.UserError as error:
      raise errors.UserError(
          f"{cell.method} on {cell.task}: {error}") from error
    one = records[-1]
    print(f"{one['metric']} {one['value']:.1f} in {one['seconds']:.0f} s")
    table = tables.write(
        output_dir, _in_order(records, methods, tasks),
        f"{os.path.basename(setting.checkpoint)}, "
        f"{' / '.join(map(str, dict.fromkeys(steps.values())))} steps of "
        f"{batch_size}", picture_axis, places)
  print(f"\n{table}\n{os.path.relpath(output_dir)}/{tables.RECORDS} has more.")
  return table


def _chosen(found: Mapping, wanted: Sequence[str] | None, macro: str):
  for name in wanted or ():
    if name not in found:
      raise errors.UserError(
          f"{macro} has {name!r}, which is none of {', '.join(found)}.")
  return {name: list(value) for name, value in found.items()
          if wanted is None or name in wanted}


def _places(
    methods: Mapping[str, entries.Entries], axis: str | None
) -> dict[str, float]:
  """Where the methods that set the axis's number stand on it."""
  if axis is None:
    return {}
  found = {name: value for name, method in methods.items()
           if (value := entries.bound(method, axis)) is not None}
  if not found or not all(isinstance(v, numbers.Real) for v in found.values()):
    raise errors.UserError(
        f"PICTURE_AXIS is {axis!r}, which METHODS set to {found}: name a "
        "number in the bindings of some of them, or None.")
  return found


def _wanted(
    every: Sequence[cells.Cell], setting: cells.Setting, execute_code: bool
) -> list[cells.Cell]:
  """The cells without those that would only repeat another one.

  All gin files are read, so that a slip shows before hours have gone by.
  """
  same = set()
  for cell in {(one.method, one.task): one for one in every}.values():
    name, is_trained = cells.look(cell, setting)
    if not is_trained and name not in benchmarks.NAMES:
      same.add((cell.method, cell.task))
    if name in benchmarks.NAMES and not execute_code:
      raise errors.UserError(
          f"{cell.task} is judged by running what the models write: allow it "
          "with --gin.EXECUTE_CODE=True (prompt_tuning/execution/cage.py says "
          "what protects this machine), or leave the task out.")
  return [cell for cell in every if (
      cell.seed == every[0].seed or (cell.method, cell.task) not in same)]


def _in_order(records, methods, tasks):
  methods, tasks = list(methods), list(tasks)
  return sorted(records, key=lambda one: (
      methods.index(one["method"]), tasks.index(one["task"]), one["seed"]))


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning.scripts import compare_methods as importable

  command_line.main(importable.compare)
