"""Runs a program that nobody has read, in a cage.

Every program gets an interpreter of its own, which locks itself in before it
runs a line of it (inside/), and is ended with all that it started. The layers,
of which a system may lack some; `Cage.layers` has those in force:

* `bubblewrap` (the program `bwrap`, where it is installed): a file system of
  the interpreter alone, a folder in memory, no network, no other processes.
* `namespaces`, without bubblewrap, where unshare(2) is allowed: the same, but
  for the file system.
* `landlock` (Linux 5.13): reads the interpreter, writes to one folder.
* `seccomp` (x86-64 and ARM): no sockets, no other programs or processes, no
  signals to others; see inside/system_calls.py.
* `user`, where root calls: an id without an account.
* limits, always: time, memory, threads, open files, sizes of files; a cleaned
  environment; a session of its own.

Without namespaces and without seccomp there is no cage, and nothing runs.

What it does not protect from: a hole in the kernel, which all programs share;
being slowed down, or short of memory, as limits are for one program and as many
run as there are workers; the names of files, which only bubblewrap hides; what
is in the interpreter's own folders, installed packages included. A program
written against this cage, say by a walk through the interpreter's memory, can
claim to have passed; one that merely exits, patches or prints cannot. Where
programs are hostile and not just wrong, use a virtual machine around all of it.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import marshal
import math
import os
import pathlib
import resource
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from typing import BinaryIO

from prompt_tuning import errors

_INSIDE = pathlib.Path(__file__).parent / "inside"

OUTER = ("bubblewrap", "namespaces")
INNER = ("user", "landlock", "seccomp")

# An id in no account's range and in nobody's use (systemd's for services that
# come and go); 1 is added for each cage at work, so that two do not share it.
_FIRST_USER = 64_000
_INTERPRETER_BYTES = 128 << 20
_START_SECONDS = 60  # on a busy machine; an interpreter needs 0.02
_LOOK_SECONDS = 0.1  # between two looks at what a program wrote
_READY = b"ready\n"
_REPORT_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may use.

  Attributes:
    seconds: of processor time, all threads together, so that a busy machine
      makes no program fail.
    wall_seconds: by the clock, for a program that waits; None for three times
      `seconds`.
    memory_bytes: of address space, the interpreter's included.
    threads: at once.
    files: open at once.
    file_bytes: of one file.
    folder_bytes: of all files together.
  """

  seconds: float = 10.0
  wall_seconds: float | None = None
  memory_bytes: int = 2 << 30
  threads: int = 64
  files: int = 64
  file_bytes: int = 16 << 20
  folder_bytes: int = 64 << 20

  def __post_init__(self):
    if self.wall_seconds is None:
      object.__setattr__(self, "wall_seconds", 3 * self.seconds)
    for field in dataclasses.fields(self):
      if not 0 < getattr(self, field.name) < 1 << 62:
        raise errors.UserError(
            f"the limit {field.name} of a program is "
            f"{getattr(self, field.name)}: give a number above 0.")
    if self.memory_bytes < _INTERPRETER_BYTES or self.files < 16:
      raise errors.UserError(
          f"a limit of {self.memory_bytes >> 20} MiB and {self.files} open "
          f"files is too low for the interpreter alone: give "
          f"{_INTERPRETER_BYTES >> 20} MiB and 16 files or more.")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended.

  Attributes:
    passed: whether it ran to its end without an exception.
    result: "passed", "timed out" or "failed: " and why.
    seconds: of wall-clock time, the interpreter's start not included.
  """

  passed: bool
  result: str
  seconds: float


class Cage:
  """Runs programs, each by itself; `run` may be called from many threads."""

  def __init__(
      self, limits: Limits = Limits(), *, execute_generated_code: bool = False,
      layers: Sequence[str] | None = None,
  ):
    """Finds out what this system has to make a cage of.

    Args:
      limits: of every program.
      execute_generated_code: must be True: whoever runs generated programs
        says so, and has read what the cage does not protect from.
      layers: of `OUTER` and `INNER`, to be used where they work; None for all.

    Raises:
      UserError: without the word, or where no cage can be made.
    """
    if not execute_generated_code:
      raise errors.UserError(
          "this runs programs that a model wrote: say "
          "execute_generated_code=True (--execute_generated_code) if they may "
          "run on this machine, in the cage that "
          "prompt_tuning/execution/cage.py describes.")
    self.limits = limits
    self.layers = _layers(tuple(OUTER + INNER if layers is None else layers))

  def run(self, source: str) -> Outcome:
    """Runs a program to its end, or to that of its time.

    Args:
      source: Python code; its namespace is empty and `__name__` not "__main__".

    Raises:
      UserError: if the cage cannot be put around it any more.
    """
    for _ in range(3):  # a machine out of memory or processes may recover
      with contextlib.suppress(_BrokenError):
        return _run(source, self.limits, self.layers)
      time.sleep(1)
    raise errors.UserError(
        f"the cage ({', '.join(self.layers)}) cannot be put around programs "
        "any more: see whether memory or processes ran out on this machine, "
        "and call again; what is done is kept.")


class _BrokenError(Exception):
  """A layer that this system lacks, or None for what is outside of all."""

  def __init__(self, layer: str | None):
    super().__init__(layer)
    self.layer = layer


@functools.cache
def _layers(wanted: tuple[str, ...]) -> tuple[str, ...]:
  """The best of the wanted layers that work here, found by trying."""
  if sys.platform != "linux":
    raise errors.UserError(
        f"generated programs run in a cage that only Linux has, and this is "
        f"{sys.platform}: score the predictions on a Linux machine.")
  for outer in [*(layer for layer in OUTER if layer in wanted), None]:
    if outer == "bubblewrap" and not shutil.which("bwrap"):
      continue
    layers = (outer,) * bool(outer) + tuple(
        layer for layer in INNER if layer in wanted
        and (layer != "user" or os.geteuid() == 0))
    while outer or "seccomp" in layers:
      try:
        if _run(_PROBE, Limits(seconds=_START_SECONDS), layers).passed:
          return layers
        lacking = "user"  # the interpreter's files are not that user's to read
      except _BrokenError as broken:
        lacking = broken.layer
      if lacking not in layers or lacking == outer:
        break
      layers = tuple(layer for layer in layers if layer != lacking)
  raise errors.UserError(
      "this system has nothing to make a cage of: allow unprivileged user "
      "namespaces or seccomp filters (containers: the runtime's default "
      "profile has the latter), or install bubblewrap.")


# What every program may expect: modules that are not loaded yet, and a folder.
_PROBE = """
import decimal, heapq, xml.dom.minidom
with open("file", "w") as file:
  file.write("text")
"""


def _run(source: str, limits: Limits, layers: Sequence[str]) -> Outcome:
  token = secrets.token_hex(16).encode()
  with _folder() as folder, _pipe() as (report, outlet):
    inside = "/tmp" if "bubblewrap" in layers else folder
    settings = _settings(limits, layers, inside) | {
        "source": source, "token": token, "report": outlet.fileno()}
    command = [_interpreter(), "-s", "-S", "-P", "-B", str(_INSIDE)]
    if "bubblewrap" in layers:
      command = _bubblewrap(limits, "user" in layers) + command
    with _content(marshal.dumps(settings)) as stdin:
      try:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, pass_fds=[outlet.fileno()], cwd=folder,
            start_new_session=True, env=_environment(inside))
      except OSError as error:
        raise _BrokenError(None) from error
    outlet.close()
    try:
      return _watched(process, report, token, folder, limits)
    finally:
      # The whole session; and, by the kernel, the whole process namespace,
      # which is gone, too, once its first process is. Not after a wait: the
      # number may then be another's.
      if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watched(
    process: subprocess.Popen, report: BinaryIO, token: bytes, folder: str,
    limits: Limits,
) -> Outcome:
  """Waits for the end of a program, or of its time, and judges it."""
  text, started, reading = b"", False, True
  start = time.monotonic()
  deadline = start + _START_SECONDS
  while (left := deadline - time.monotonic()) > 0:
    if reading:
      if _readable(report, min(left, _LOOK_SECONDS)):
        piece = report.read(_REPORT_BYTES)
        reading, text = bool(piece), text + piece
        if not started and text.startswith(_READY):
          started, start = True, time.monotonic()
          deadline = start + limits.wall_seconds
        if len(text) > _REPORT_BYTES:
          return _failed("it wrote into the report", start)
        continue
    else:  # the program is at its end, or has closed what it must report to
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(min(left, _LOOK_SECONDS))
        break
    if _bytes_in(folder) > limits.folder_bytes:
      return _failed("it wrote too much", start)
  if not started:
    _, layer, *_ = *text.decode("utf-8", "replace").split("\n"), None, None
    raise _BrokenError(layer)
  return _judged(
      text[len(_READY):], token, process.returncode, start, limits.seconds)


def _judged(
    report: bytes, token: bytes, status: int | None, start: float,
    limit: float,
) -> Outcome:
  """From what was reported and how the process ended, if it did."""
  seconds = time.monotonic() - start
  if report == token:
    return Outcome(True, "passed", seconds)
  # Processes around the program tell of a signal as 128 and its number.
  number = None if status is None else -status if status < 0 else status - 128
  # At the limit comes SIGXCPU; if a program ignores it, SIGKILL.
  if status is None or number == signal.SIGXCPU or (
      number == signal.SIGKILL and seconds >= limit):
    return Outcome(False, "timed out", seconds)
  if report.startswith(b"failed: "):
    return _failed(report[8:].decode("utf-8", "replace"), start)
  names = {known.value: known.name for known in signal.Signals}
  if number in signal.valid_signals():
    return _failed(f"ended by {names.get(number, f'signal {number}')}", start)
  return _failed(
      f"it left, with status {status}, before the end of the check", start)


def _failed(why: str, start: float) -> Outcome:
  # On one line, and without what moves a terminal's cursor.
  shown = "".join(c if c.isprintable() else " " for c in why[:300])
  return Outcome(False, f"failed: {shown.strip()}", time.monotonic() - start)


def _readable(report: BinaryIO, seconds: float) -> bool:
  poll = select.poll()  # select.select stops at descriptor 1023
  poll.register(report, select.POLLIN)
  return bool(poll.poll(math.ceil(seconds * 1000)))


def _settings(limits: Limits, layers: Sequence[str], folder: str) -> dict:
  """What inside/__main__.py needs to know of the cage."""
  seconds = math.ceil(limits.seconds)
  return {
      "layers": list(layers), "folder": folder,
      "folder_bytes": limits.folder_bytes,
      # Two programs with one id share its threads and nothing else.
      "user": _FIRST_USER + secrets.randbelow(1000),
      "readable": list(_readable_paths()), "path": list(_module_path()),
      "threads": limits.threads + _other_threads(tuple(layers)),
      "limits": {
          name: _at_most(name, *values) for name, values in {
              # A program may ignore the signal at the first, not the second.
              "RLIMIT_CPU": (seconds, seconds + 1),
              "RLIMIT_AS": (limits.memory_bytes,) * 2,
              "RLIMIT_NOFILE": (limits.files,) * 2,
              "RLIMIT_FSIZE": (limits.file_bytes,) * 2,
              "RLIMIT_CORE": (0, 0), "RLIMIT_MEMLOCK": (0, 0),
              "RLIMIT_MSGQUEUE": (0, 0)}.items()}}


def _at_most(name: str, soft: int, hard: int) -> tuple[int, int]:
  """A limit, or the one that this process has, whichever is lower."""
  _, own = resource.getrlimit(getattr(resource, name))
  if own == resource.RLIM_INFINITY:
    return soft, hard
  return min(soft, own), min(hard, own)


@functools.cache
def _other_threads(layers: tuple[str, ...]) -> int:
  """Threads that count against a program's because they have its user.

  None where the user, or the namespace in which they are counted, is its own.
  """
  if os.geteuid() == 0 or set(layers) & set(OUTER):
    return 0
  count = 0
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if process.stat().st_uid == os.geteuid():
        count += len(os.listdir(process / "task"))
  return count


def _bubblewrap(limits: Limits, root: bool) -> list[str]:
  command = [
      "bwrap", "--die-with-parent", "--unshare-net", "--unshare-pid",
      "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
  if root:  # the process inside becomes another user itself
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH"):
      command += ["--cap-add", capability]
  elif os.geteuid():
    command.append("--unshare-user")
  for path in [*_readable_paths(), str(_INSIDE)]:
    command += ["--ro-bind-try", path, path]
  command += ["--dev-bind", "/dev/null", "/dev/null"]
  return command + [
      "--size", str(limits.folder_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]


def _environment(folder: str) -> dict[str, str]:
  return {
      "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8",
      # The order of a set of texts, and with it a program's result, is always
      # the same.
      "PYTHONHASHSEED": "0",
      # Numerical libraries otherwise start a thread for every processor.
      "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@functools.cache
def _interpreter() -> str:
  """Without a virtual environment, whose packages `_module_path` has."""
  return os.path.realpath(
      getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _module_path() -> tuple[str, ...]:
  """The standard library, and the packages installed beside this one."""
  paths = sysconfig.get_paths()
  library = [paths["stdlib"], paths["platstdlib"],
             sysconfig.get_config_var("DESTSHARED")]
  packages = [path for path in sys.path if os.path.basename(path) in (
      "site-packages", "dist-packages")]
  return tuple(dict.fromkeys(path for path in library + packages if path))


@functools.cache
def _readable_paths() -> tuple[str, ...]:
  """What an interpreter reads."""
  paths = [
      _interpreter(), *_module_path(), sysconfig.get_config_var("LIBDIR"),
      "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache",
      "/usr/share/zoneinfo", "/dev/urandom"]
  return tuple(dict.fromkeys(
      path for path in paths if path and os.path.exists(path)))


@contextlib.contextmanager
def _pipe():
  read, write = os.pipe()
  with open(read, "rb", 0) as report, open(write, "wb", 0) as outlet:
    yield report, outlet


@contextlib.contextmanager
def _content(content: bytes):
  """A file with no name, to be read from its start."""
  with open(os.memfd_create("settings"), "r+b") as file:
    file.write(content)
    file.seek(0)
    yield file


@contextlib.contextmanager
def _folder():
  path = tempfile.mkdtemp(prefix="generated-program-")
  try:
    yield path
  finally:
    _remove(path)


def _bytes_in(folder: str) -> int:
  """The sizes of all files; each name counts, too, for there may be many."""
  total, folders = 0, [folder]
  while folders:
    path = folders.pop()
    if len(path) > len(folder) + 512:  # on the way to where none can look
      total += 1 << 40
    with contextlib.suppress(OSError), os.scandir(path) as entries:
      for entry in entries:
        total += 4096
        with contextlib.suppress(OSError):
          total += entry.stat(follow_symlinks=False).st_blocks * 512
        if entry.is_dir(follow_symlinks=False):
          folders.append(entry.path)
  return total


def _remove(folder: str) -> None:
  """Removes a tree of any depth, which `shutil.rmtree` does not.

  Folders in a folder are first moved up, so that no path grows long.
  """
  number = 0
  while names := os.listdir(folder):
    for name in names:
      path = os.path.join(folder, name)
      if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        continue
      os.chmod(path, 0o700)  # a program may make folders that none may open
      for inner in os.listdir(path):
        number += 1
        below = os.path.join(path, inner)
        if os.path.isdir(below) and not os.path.islink(below):
          os.chmod(below, 0o700)  # it cannot be moved otherwise
        os.rename(below, os.path.join(folder, f".{number}.moved"))
      os.rmdir(path)
  os.rmdir(folder)
