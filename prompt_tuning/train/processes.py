"""The processes of one run: they start together, and end together.

Every step needs all of them. Where one is lost (killed, out of memory, its
machine gone), the others learn of it in one of two ways: a sum over processes
raises an error, or JAX, after `HEARTBEAT_SECONDS` without a sign of life,
aborts them where no Python runs any more. Either way the last line that a user
reads says what happened and what to do.
"""

import atexit
import contextlib
import os
import re
import subprocess
import sys
import threading
import traceback

import jax

from prompt_tuning import errors

# JAX's own is 100. A loaded machine misses some of the beats, each a second or
# more apart.
HEARTBEAT_SECONDS = 30
# A process that failed waits this long for the others to fail alike: then all
# leave in order. JAX's own is 300.
LEAVING_SECONDS = 10

# Parts of what XLA raises when a process is gone, on CPU, GPU and TPU.
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|"
    r"coordination.?service|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)
_words: subprocess.Popen | None = None


def initialize(**settings) -> None:
  """`jax.distributed.initialize`, and a last word for the case of an abort.

  Args:
    **settings: JAX's; those left out it finds itself.
  """
  # JAX would take our "auto" for an address.
  given = os.environ.get("JAX_COORDINATOR_ADDRESS")
  if given == "auto":
    del os.environ["JAX_COORDINATOR_ADDRESS"]
  try:
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **settings)
  finally:
    if given == "auto":
      os.environ["JAX_COORDINATOR_ADDRESS"] = given
  if jax.process_count() > 1:
    _speak_after_an_abort(lost_sentence())


def lost_sentence() -> str:
  """What to do when a process is gone."""
  return (
      f"error: A process of this run of {jax.process_count()} was lost (its "
      "own last lines say why), so all of them end: start all again with the "
      "same command, and training goes on from its last checkpoint.")


@contextlib.contextmanager
def leaving_together():
  """Ends a process that failed in seconds, whatever the others do.

  A process that fails alone would wait for the others at its exit, and they
  for it in their next step.
  """
  try:
    yield
  except BaseException as error:
    if (isinstance(error, SystemExit)  # which all have agreed on
        or not jax.distributed.is_initialized() or jax.process_count() == 1):
      raise
    if isinstance(error, Exception) and _LOST.search(str(error)):
      cause = traceback.format_exception_only(error)[-1].strip()
      print(cause, file=sys.stderr)
      _leave_now(1)  # and the sentence follows
    timer = threading.Timer(LEAVING_SECONDS, _leave_now, [_status(error), True])
    timer.daemon = True
    timer.start()
    raise


def _status(error: BaseException) -> int:
  """What the process is about to end with."""
  if isinstance(error, KeyboardInterrupt):
    return 130
  return 2 if isinstance(error, errors.UserError) else 1


def _leave_now(status: int, silently: bool = False):
  """Without JAX's wait for the others."""
  if silently:
    _be_silent()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _speak_after_an_abort(sentence: str):
  """A child that prints the sentence if this process ends without a word.

  It reads a pipe that ends with this process, so that its line is the last,
  behind JAX's many; a line in the pipe means that there is nothing to say.
  """
  global _words
  _words = subprocess.Popen(
      ["/bin/sh", "-c", 'read -r _ || printf "%s\\n" "$1" >&2', "sh", sentence],
      stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
      start_new_session=True)
  atexit.register(_be_silent)


def _be_silent():
  global _words
  if _words is not None:
    with contextlib.suppress(OSError):
      _words.stdin.write(b"\n")
      _words.stdin.close()
    _words = None
