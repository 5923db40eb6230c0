"""Lists tasks and mixtures, and prints examples of them.

    python -m prompt_tuning.scripts.show_tasks --match sst2
    python -m prompt_tuning.scripts.show_tasks \\
        --task taskless_glue_sst2_v200_examples --split train --count 3

Without `--task` it opens no data and takes a second.
"""

import argparse
import importlib
import itertools
import json
import os
import re
import sys

from prompt_tuning import errors
from prompt_tuning.data import tasks, text_tasks


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.show_tasks",
      description=__doc__.split("\n")[0])
  parser.add_argument(
      "--match", default="", metavar="PATTERN",
      help="list names that have this regular expression in them")
  parser.add_argument("--task", help="describe this one and print examples")
  parser.add_argument("--split", default="validation")
  parser.add_argument(
      "--count", type=int, default=1, help="how many examples to print")
  parser.add_argument(
      "--module", help="imported first: a module that registers tasks")
  parser.add_argument(
      "--tfds_data_dir", help="where TensorFlow Datasets has its data")
  flags = parser.parse_args(arguments)
  if flags.tfds_data_dir:
    os.environ["TFDS_DATA_DIR"] = flags.tfds_data_dir
  with errors.reported():
    if flags.module:
      _import(flags.module)
    lines = describe(flags.task, flags.split, flags.count) if (
        flags.task) else listing(flags.match)
    try:
      for line in lines:
        print(line)
    except BrokenPipeError:  # `| head` has seen enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _import(module: str):
  sys.path.insert(0, os.getcwd())
  try:
    importlib.import_module(module)
  except ImportError as error:
    raise errors.UserError(
        f"--module {module} cannot be imported ({error}): give a module that "
        "is installed, or that lies in the working directory.") from error


def listing(pattern: str):
  """Lines with the names that match, by family, with what they are made of.

  Args:
    pattern: a regular expression, anywhere in a name.

  Raises:
    UserError: nothing matches, or the pattern is none.
  """
  try:
    wanted = re.compile(pattern).search
  except re.error as error:
    raise errors.UserError(
        f"--match {pattern!r} is no regular expression ({error}): write "
        "brackets and such as \\[.") from error
  found = {"registered": {name: "" for name in tasks.registered()}}
  for family, module in tasks.families().items():
    made = {name: text_tasks.source_of(factory()).name
            for name, factory in module.TASKS.items() if wanted(name)}
    found[family] = made | {
        name: _mixture_text(rates) for name, rates in module.MIXTURES.items()}
  count = 0
  for family, names in found.items():
    names = {name: text for name, text in names.items() if wanted(name)}
    if names:
      yield f"{family} ({len(names)})"
      yield from (f"  {name}  {text}".rstrip() for name, text in names.items())
    count += len(names)
  if not count:
    raise errors.UserError(
        f"no task or mixture has {pattern!r} in its name: try a part of it, "
        "or none to list all.")


def _mixture_text(rates) -> str:
  return "= " + " + ".join(
      name if rate == 1 else f"{rate:g} x {name}"
      for name, rate in rates.items())


def describe(name: str, split: str, count: int):
  """Lines about a task or mixture, and the first examples of a split.

  Args:
    name: of the task or mixture.
    split: of the examples.
    count: how many examples, of a mixture from each task.

  Raises:
    UserError: an unknown name, a split that none has, or absent data.
  """
  found = tasks.get_task(name)
  mixture = isinstance(found, tasks.Mixture)
  members = found.tasks if mixture else ((found, 1.0),)
  if not any(split in task.splits for task, _ in members):
    splits = sorted({one for task, _ in members for one in task.splits})
    raise errors.UserError(
        f"{name} has no split {split!r}: give --split one of "
        f"{', '.join(splits)}.")
  for task, rate in members:
    source = text_tasks.source_of(task)
    facts = [f"from {source.name}" if source else "",
             f"splits {', '.join(task.splits)}", _index_text(task),
             f"rate {rate:g}" if mixture else ""]
    yield f"{task.name}: {'; '.join(fact for fact in facts if fact)}"
    if split in task.splits:
      for example in itertools.islice(task.examples(split), count):
        yield json.dumps(example, indent=2, ensure_ascii=False, default=str)


def _index_text(task: tasks.Task) -> str:
  settings = getattr(task.token_fn, "keywords", {})
  return f"task index {settings['index']} in front" if (
      "index" in settings) else ""


if __name__ == "__main__":
  sys.exit(main())
