"""A polite end: SIGTERM and Ctrl-C let a run save before it leaves."""

import signal
import threading

import jax
import numpy as np


class StopRequest:
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
