"""The last word of a process that JAX ends. Oracle: what such a user reads.

Real processes that lose each other are in tests/test_distributed.py.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
START = """
import os, sys
import jax
from prompt_tuning.train import processes
jax.distributed.is_initialized = lambda: True
jax.process_count = lambda: 4
jax.distributed.initialize = lambda **settings: None
processes.initialize()
with processes.leaving_together():
  {end}
print("after")
"""
LOST = ("error: A process of this run of 4 was lost (its own last lines say "
        "why), so all of them end: start all again with the same command, and "
        "training goes on from its last checkpoint.")


@pytest.mark.parametrize("end, status, last", [
    ("pass", 0, ""), ("os.abort()", -6, LOST),
    ("raise ValueError('Gloo: Connection closed by peer')", 1, LOST),
    ("raise ValueError('a bug of ours')", 1, "ValueError: a bug of ours"),
    # As a process that waits for the others at its exit.
    ("import atexit, time; processes.LEAVING_SECONDS = 0.1;"
     "atexit.register(time.sleep, 60); raise KeyError(3)", 1, "KeyError: 3")])
def test_last_word(end, status, last):
  done = subprocess.run(
      [sys.executable, "-c", START.format(end=end)], capture_output=True,
      text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
  assert done.returncode == status
  assert (done.stderr.splitlines() or [""])[-1] == last
  assert (done.stdout == "after\n") == (end == "pass")
