"""Many programs: at once, kept as they end, and summed up.

Results are lines of JSON. They are on the disk a second after a program ended
at the latest, so that a run that is cut off goes on where it was; the sha256
of all programs and limits in each line says that they belong together.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time

from prompt_tuning import errors, formats
from prompt_tuning.execution import cage as cage_lib
from prompt_tuning.execution import pass_at_k, prediction_files

SKIPPED = "skipped: an answer of the wrong kind"


@dataclasses.dataclass(frozen=True)
class Sample:
  """A program to run.

  Attributes:
    task_id: the problem's.
    sample: which of its samples, from 0.
    program: None for a prediction that is wrong as it stands.
  """

  task_id: str
  sample: int
  program: str | None


def fingerprint(samples: Iterable[Sample], limits: cage_lib.Limits) -> str:
  """sha256 of all programs, in order, and of what limits them."""
  content = [dataclasses.astuple(sample) for sample in samples]
  return hashlib.sha256(json.dumps(
      [1, dataclasses.astuple(limits), content]).encode()).hexdigest()


def run(
    samples: Sequence[Sample], cage: cage_lib.Cage, path: str | os.PathLike,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
  """Runs programs and keeps each result in a file.

  Args:
    samples: the programs.
    cage: where they run.
    path: a JSONL file of results. If it is there and has some of these
      programs' results, the others are run; at the end all are in order.
    workers: how many run at once; None for the processors there are.
    progress: called with how many are done and how many there are.

  Returns:
    {"task_id", "sample", "passed", "result", "seconds", "run_sha256"} each, in
    order. "seconds" is 0 for one that was not run.

  Raises:
    UserError: if `path` has other results or is being written to.
  """
  run_sha256 = fingerprint(samples, cage.limits)
  if workers is None:
    workers = len(os.sched_getaffinity(0))
  if workers < 1:
    raise errors.UserError(f"--workers {workers} must be 1 or more.")
  with _locked(path):
    results = _read(path, run_sha256)
    with _appending(path) as append:
      for sample, outcome in _outcomes(
          [s for s in samples if (s.task_id, s.sample) not in results], cage,
          workers):
        row = {"task_id": sample.task_id, "sample": sample.sample,
               **dataclasses.asdict(outcome), "run_sha256": run_sha256}
        row["seconds"] = round(row["seconds"], 3)
        append(row)
        results[sample.task_id, sample.sample] = row
        progress(len(results), len(samples))
    rows = [results[sample.task_id, sample.sample] for sample in samples]
    prediction_files.write_rows(path, rows)
  return rows


def _outcomes(samples, cage, workers):
  """Each sample with its outcome, as they end."""
  for sample in samples:
    if sample.program is None:
      yield sample, cage_lib.Outcome(False, SKIPPED, 0.0)
  pool = futures.ThreadPoolExecutor(workers)
  try:
    running = {pool.submit(cage.run, sample.program): sample
               for sample in samples if sample.program is not None}
    for done in futures.as_completed(running):
      yield running[done], done.result()
  finally:
    # After Ctrl-C: those that run come to their end, the others never start.
    pool.shutdown(cancel_futures=True)


def _read(path, run_sha256: str) -> dict[tuple[str, int], dict]:
  """Results that are there, without a last line that was cut off."""
  try:
    with open(path, "rb") as file:
      *lines, _ = file.read().split(b"\n")
  except FileNotFoundError:
    return {}
  except OSError as error:
    raise errors.UserError(
        f"cannot read {path}: {error.strerror}; choose another --output."
    ) from error
  found = {}
  for line in lines:
    try:
      row = json.loads(line)
      same = row["run_sha256"] == run_sha256
      found[row["task_id"], row["sample"]] = row
    except (ValueError, TypeError, KeyError, RecursionError):
      same = False
    if not same:
      raise errors.UserError(
          f"{path} holds results of other predictions, problems or limits: "
          "remove it, or choose another --output.")
  return found


@contextlib.contextmanager
def _appending(path):
  """A function that adds a row to a file of whole lines."""
  synced = time.monotonic()
  try:
    with open(path, "r+b") as file:
      content = file.read()
      file.truncate(content.rfind(b"\n") + 1)
      file.seek(0, os.SEEK_END)

      def append(row):
        nonlocal synced
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        if time.monotonic() - synced > 1:  # a disk takes milliseconds
          os.fsync(file.fileno())
          synced = time.monotonic()

      yield append
      os.fsync(file.fileno())
  except OSError as error:
    raise errors.UserError(
        f"cannot write {path}: {formats.why_not_written(error)}") from error


@contextlib.contextmanager
def _locked(path):
  """The file, made if need be, to one process at a time."""
  try:
    with open(path, "ab") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise errors.UserError(
            f"another process is writing {path}: wait for it, or choose "
            "another --output.") from error
      yield
  except OSError as error:
    raise errors.UserError(
        f"cannot write {path}: {formats.why_not_written(error)}") from error


def counts(
    results: Sequence[dict], missing: Sequence[str] = (),
    leave_out_skipped: bool = False,
) -> list[tuple[int, int]]:
  """How many samples each problem has, and how many of them passed.

  Args:
    results: of `run`.
    missing: problems without a prediction, to be counted as failed; they get
      as many samples as the problem with the fewest.
    leave_out_skipped: as CRUXEval's own scorer, which does not count answers
      of the wrong kind, unless no sample of the problem passed.

  Returns:
    (samples, correct) of each problem.
  """
  by_task = {}
  for row in results:
    by_task.setdefault(row["task_id"], []).append(row)
  found = []
  for rows in by_task.values():
    correct = sum(row["passed"] for row in rows)
    skipped = sum(row["result"] == SKIPPED for row in rows)
    dropped = skipped if leave_out_skipped and correct else 0
    found.append((len(rows) - dropped, correct))
  fewest = min((samples for samples, _ in found), default=1)
  return found + [(fewest, 0)] * len(missing)


def summary(
    results: Sequence[dict], cage: cage_lib.Cage, ks: Sequence[int],
    seed: int = 0, missing: Sequence[str] = (),
    leave_out_skipped: bool = False,
) -> dict:
  """What is said of a run, ready for JSON; arguments as in `counts`."""
  each = counts(results, missing, leave_out_skipped)
  return {
      "problems": len(each), "samples": len(results),
      "passed": sum(row["passed"] for row in results),
      "timed_out": sum(row["result"] == "timed out" for row in results),
      "skipped": sum(row["result"] == SKIPPED for row in results),
      "pass_at_k": pass_at_k.table(
          each, ks, seed, too_few_fail=leave_out_skipped),
      "interval": f"95 %, bootstrap over problems, 10000 draws, seed {seed}",
      "cage": list(cage.layers),
      "limits": dataclasses.asdict(cage.limits),
      "run_sha256": results[0]["run_sha256"]}


def shown(found: dict) -> str:
  """A summary as a table."""
  lines = [f"{found['passed']} of {found['samples']} samples passed, "
           f"{found['problems']} problems", "",
           "| metric | % | 95 % interval |", "|---|---|---|"]
  for name, figure in found["pass_at_k"].items():
    low, high = figure["interval_95"]
    lines.append(f"| {name} | {100 * figure['value']:.2f} | "
                 f"{100 * low:.2f} to {100 * high:.2f} |")
  return "\n".join(lines)
