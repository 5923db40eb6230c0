"""Training steps and decoding per second and peak memory, against others.

    python -m prompt_tuning.scripts.benchmark --setting t5 --steps 12

Settings (random weights):
  t5          T5 1.1 small, batch 8, inputs 128, targets 8, prompt 100.
  causal_200  SmolLM2-135M, batch 4, text 210, prompt 200: PEFT's own shape.
  causal_20   SmolLM2-135M, batch 8, text 128, prompt 20.
  lopa        SmolLM2-135M, batch 8, text 128, prompt 10: prompt tuning with the
              prompt in every row, with the prompt run once, and LOPA of rank 4
              with cached encodings of width 1024.
  decode      SmolLM2-135M, batch 8, inputs 128, 64 tokens, greedily, with no
              prompt; against transformers.
  beam        the same with 5 beams, both on the same weights.
  save        a prompt of [100, 768] under Adafactor: how long a training step
              waits for its save (the files are written in the background).
  t5x         whole runs of `prompt_tuning.train` and of stock `t5x.train`: see
              `benchmark_t5x`.

Each contender is a process of its own; they take turns, one step each, so a
machine whose speed drifts slows all of them alike and the ratios hold. PEFT
runs at its fair best: without dropout, denormals flushed to zero (its float32
T5 is many times slower with them), all cores. Without torch, transformers and
peft only our own rows are measured.

The column `matmul` is each library's speed at one large product in the same
dtype. It bounds what a step can be: where XLA's matmul is twice torch's (CPUs
with full-rate AVX-512) the ratio of the steps can be two, elsewhere not.
"""

import argparse
import datetime
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

from prompt_tuning.scripts import benchmark_contenders as contenders
from prompt_tuning.scripts import benchmark_t5x


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--setting",
                      choices=[*contenders.SETTINGS, "t5x"], default="t5")
  parser.add_argument("--steps", type=int, default=8, help="timed steps each")
  parser.add_argument(
      "--targets", type=int, default=None,
      help="causal: loss on the last so many tokens of the text (default: all)")
  parser.add_argument("--contender", default=None,
                      help="run as one contender (used by this script itself)")
  flags = parser.parse_args(arguments)
  if flags.setting == "t5x":
    benchmark_t5x.print_table(flags.steps)
    return
  runs = contenders.SETTINGS[flags.setting](flags.targets)
  if flags.contender:
    _serve(*runs[flags.contender])
    return
  names = [n for n in runs if n.startswith("ours") or _has_peft()]
  again = ["--setting", flags.setting]
  if flags.targets:
    again += ["--targets", str(flags.targets)]
  _print_table(flags.setting, _race(names, flags.steps, again))


def _has_peft() -> bool:
  return all(importlib.util.find_spec(m)
             for m in ("torch", "transformers", "peft"))


def _race(names, steps, again):
  """{contender: (seconds of each step, first step's, peak MiB, GFLOP/s)}."""
  workers = {
      name: subprocess.Popen(
          [sys.executable, "-m", "prompt_tuning.scripts.benchmark", *again,
           "--contender", name], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
      for name in names}

  def ask(name, what="step") -> list[float]:
    workers[name].stdin.write(what + "\n")
    workers[name].stdin.flush()
    return [float(x) for x in workers[name].stdout.readline().split()]

  first = {name: ask(name)[0] for name in names}
  for name in names:
    ask(name)  # one more to warm up
  times = {name: [] for name in names}
  peaks = {}
  for _ in range(steps):
    for name in names:
      seconds, peaks[name] = ask(name)
      times[name].append(seconds)
  matmul = {name: ask(name, "matmul")[0] for name in names}
  for worker in workers.values():
    worker.stdin.close()
    worker.wait()
  return {name: (times[name], first[name], peaks[name], matmul[name])
          for name in names}


def _serve(make_step, make_matmul):
  """Answers each line on stdin: `step` with seconds and peak MiB, or `matmul`.

  The first step's seconds include imports, building and compiling.
  """
  step = None
  while line := sys.stdin.readline():
    if line == "matmul\n":
      print(_matmul_speed(make_matmul), flush=True)
      continue
    start = time.perf_counter()
    if step is None:
      step = make_step()
    told = step()
    seconds = time.perf_counter() - start if told is None else told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, peak, flush=True)


def _matmul_speed(make_matmul) -> float:
  """GFLOP/s of the best of ten products of 2048 x 2048 matrices."""
  matmul = make_matmul(2048)
  seconds = []
  for _ in range(11):
    start = time.perf_counter()
    matmul()
    seconds.append(time.perf_counter() - start)
  return 2 * 2048**3 / min(seconds) / 1e9


def _print_table(setting, results):
  print(f"{setting}: {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {datetime.date.today()}")
  # Ours alone: against the first of them.
  reference = next((n for n in results if not n.startswith("ours")),
                   next(iter(results)) if len(results) > 1 else None)
  print(f"{'':24}{'s/step':>9}{'steps/s':>9}{'peak MiB':>10}"
        f"{'first step s':>14}{'matmul GFLOP/s':>16}"
        + (f"   speed / {reference}" if reference else ""))
  for name, (times, first, peak, matmul) in results.items():
    median = statistics.median(times)
    ratio = "" if reference is None else "{:.2f}".format(statistics.median(
        r / t for r, t in zip(results[reference][0], times)))
    print(f"{name:24}{median:9.3f}{1 / median:9.2f}{peak:10.0f}"
          f"{first:14.1f}{matmul:16.0f}{ratio:>10}")


if __name__ == "__main__":
  main()
