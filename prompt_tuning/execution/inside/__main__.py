"""The process that becomes a generated program: locks itself in, runs, reports.

`cage.py` starts it, with the settings on its standard input, and reads its
report: "ready", then the token or why the program failed. A line "broken"
instead says which layer of the cage could not be put around it.
"""

import ctypes
import marshal
import os
import resource
import sys

import landlock
import namespaces
import system_calls


def main():
  with open(0, "rb") as stream:
    settings = marshal.load(stream)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  report, source = settings["report"], settings.pop("source")
  held = [_claim(report, settings.pop("token"))]
  _lock(settings)
  sys.path[:] = settings["path"]
  # A program's `import ctypes` must meet `_refuse_inspection`.
  for name in ("ctypes", "_ctypes", "landlock", "namespaces", "system_calls"):
    sys.modules.pop(name, None)
  sys.addaudithook(_refuse_inspection)
  os.write(report, b"ready\n")
  _run(report, source, held)


def _lock(settings) -> None:
  """Puts the layers around this process, from the outermost one."""
  libc = ctypes.CDLL(None, use_errno=True)
  layers, folder = settings["layers"], settings["folder"]
  layer = "limits"
  try:
    namespaces.die_with_parent(libc)
    for name, limit in settings["limits"].items():
      resource.setrlimit(getattr(resource, name), limit)
    if "namespaces" in layers:
      layer = "namespaces"
      namespaces.enter(libc, folder, settings["folder_bytes"])
    os.chdir(folder)
    # The interpreter may lie where only root can read. Reading all files is
    # kept where the outer layers show a program none but the interpreter's.
    reading = "user" in layers and bool({"bubblewrap", "landlock"} & {*layers})
    if "user" in layers:
      layer = "user"
      _give(folder, settings["user"])
      namespaces.become(libc, settings["user"], reading)
    layer = "limits"
    threads = settings["threads"]
    resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
    layer = "privileges"
    namespaces.give_up_privileges(libc, reading)
    if "landlock" in layers:
      layer = "landlock"
      landlock.restrict(libc, settings["readable"], folder)
    if "seccomp" in layers:
      layer = "seccomp"
      system_calls.refuse(libc)
  except (OSError, ValueError, AttributeError) as error:
    os.write(settings["report"], f"broken\n{layer}\n{error}".encode())
    os._exit(1)


def _give(folder: str, user: int) -> None:
  try:
    os.chown(folder, user, user)
  except PermissionError:  # bubblewrap's root may not; nobody else is there
    os.chmod(folder, 0o777)


def _run(report: int, source: str, held: list) -> None:
  """Runs a program to its end, and claims that it got there.

  The claim is called with what `exec` returns. Python puts it on the stack of
  this frame before it runs the program, where a program that walks the frames
  above its own finds no name for it, nor for the token.
  """
  try:
    program = compile(source, "<program>", "exec", dont_inherit=True)
    del source
    held.pop()(exec(program, {}))
  except BaseException as error:  # SystemExit, too, is no end of a check
    _fail(report, error)


def _claim(report: int, token: bytes):
  write, leave = os.write, os._exit

  def claim(_):
    write(report, token)
    leave(0)  # no thread, no atexit function of the program goes on

  return claim


def _fail(report: int, error: BaseException) -> None:
  try:
    text = f"{type(error).__name__}: {error}"[:300]
  except BaseException:
    text = "an exception that cannot be printed"
  os.write(report, b"failed: " + text.encode("utf-8", "replace"))
  os._exit(1)


def _refuse_inspection(event: str, arguments: tuple) -> None:
  """An audit hook, which stays: no way to the objects of other frames."""
  name = arguments[0] if event == "import" else event
  if name in ("_ctypes", "sys._current_frames") or event.startswith("gc."):
    raise ImportError(f"{name} is not there for a generated program")


if __name__ == "__main__":
  main()
