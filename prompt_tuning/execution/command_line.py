"""What the commands that score have in common: flags, files, the table."""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
import time

from prompt_tuning import errors, formats
from prompt_tuning.execution import cage as cage_lib
from prompt_tuning.execution import prediction_files, scoring

_MISSING = ("refuse", "wrong", "leave_out")


def parser(
    name: str, description: str, seconds: float, ks: Sequence[int],
    missing: str,
) -> argparse.ArgumentParser:
  """The flags of a command that scores.

  Args:
    name: of the command.
    description: of the command, its module's docstring.
    seconds: the limit for a program, if none is given.
    ks: the k of pass@k, if none are given.
    missing: what becomes of problems without a prediction by default.
  """
  made = argparse.ArgumentParser(
      prog=f"python -m prompt_tuning.scripts.{name}", description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument(
      "--predictions", "--generations_path", required=True, metavar="PATH")
  made.add_argument(
      "--problem_file", required=True, metavar="PATH",
      help="the benchmark's own file")
  made.add_argument(
      "--execute_generated_code", action="store_true",
      help="must be given: runs the programs that a model wrote on this "
      "machine, in a cage; what it is made of and what it does not protect "
      "from is in prompt_tuning/execution/cage.py")
  made.add_argument(
      "--output", default=None, metavar="PATH",
      help="the results, JSONL; what is there is not run again (default: the "
      "predictions' name with _results.jsonl)")
  made.add_argument(
      "--k", type=_numbers, default=tuple(ks), metavar="1,10",
      help="of pass@k; those above a problem's samples are left out (default: "
      f"{','.join(map(str, ks))})")
  made.add_argument(
      "--missing", choices=_MISSING, default=missing,
      help="what becomes of problems without a prediction: the command ends, "
      f"they count as failed, they do not count (default: {missing})")
  made.add_argument(
      "--timeout", type=float, default=seconds, metavar="SECONDS",
      help="of processor time for one program, and three times that by the "
      f"clock (default: {seconds:g})")
  made.add_argument(
      "--memory_mib", type=int, default=2048,
      help="address space of one program (default: 2048)")
  made.add_argument(
      "--workers", "--n_workers", type=int, default=None,
      help="programs at once (default: the processors there are)")
  made.add_argument(
      "--seed", type=int, default=0, help="of the intervals (default: 0)")
  return made


def missing_problems(
    flags: argparse.Namespace, known: Mapping[str, dict],
    predictions: Sequence[prediction_files.Prediction],
) -> list[str]:
  """The problems without a prediction, which are also printed.

  Raises:
    UserError: if there are some and there may be none.
  """
  names = prediction_files.without_prediction(known, predictions)
  if names and flags.missing == "refuse":
    prediction_files.complain_of_missing(flags.predictions, names)
  if names:
    becomes = {"wrong": "count as failed", "leave_out": "do not count"}
    print(f"{len(names)} of {len(known)} problems have no prediction and "
          f"{becomes[flags.missing]}, {names[0]} the first of them")
  return names


def score(
    flags: argparse.Namespace, samples: Sequence[scoring.Sample],
    missing: Sequence[str], leave_out_skipped: bool = False,
) -> dict:
  """Runs the programs, writes results and summary, prints the table.

  Returns:
    The summary (`scoring.summary`).
  """
  if flags.seed < 0:
    raise errors.UserError(f"--seed {flags.seed} must be 0 or more.")
  cage = cage_lib.Cage(
      cage_lib.Limits(seconds=flags.timeout,
                      memory_bytes=flags.memory_mib << 20),
      execute_generated_code=flags.execute_generated_code)
  print(f"the cage: limits, {', '.join(cage.layers)}")
  if not {"bubblewrap", "landlock"} & {*cage.layers}:
    print("programs can read what their user can: install bubblewrap",
          file=sys.stderr)
  results_path, summary_path = output_paths(flags.predictions, flags.output)
  results = scoring.run(
      samples, cage, results_path, flags.workers, _Progress())
  found = scoring.summary(
      results, cage, flags.k, flags.seed,
      missing if flags.missing == "wrong" else (), leave_out_skipped)
  content = found | {
      "predictions": flags.predictions, "problem_file": flags.problem_file,
      "missing": flags.missing, "without_prediction": list(missing)}
  formats.write_whole(
      summary_path, (json.dumps(content, indent=2) + "\n").encode())
  print(scoring.shown(found))
  print(f"\n{results_path}: each sample\n{summary_path}: all of the above")
  return found


def output_paths(
    predictions: str, output: str | None,
) -> tuple[pathlib.Path, pathlib.Path]:
  """Where results and their summary go.

  Raises:
    UserError: if one of them is where the predictions are.
  """
  source = pathlib.Path(predictions)
  results = pathlib.Path(
      output or source.with_name(f"{source.stem}_results.jsonl"))
  stem = results.stem.removesuffix("_results")
  summary = results.with_name(f"{stem}_summary.json")
  if source.resolve() in (results.resolve(), summary.resolve()):
    raise errors.UserError(
        f"--output {output} would overwrite the predictions: choose another.")
  return results, summary


class _Progress:
  """A line every ten seconds, for whoever waits."""

  def __init__(self):
    self._last = time.monotonic()

  def __call__(self, done: int, total: int) -> None:
    if time.monotonic() - self._last > 10:
      self._last = time.monotonic()
      print(f"{done} of {total} programs", file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
  numbers = tuple(int(part) for part in text.split(","))
  if min(numbers) < 1:
    raise ValueError(text)
  return numbers
