"""A view of the system of one's own: processes, network, mounts, users.

Here and not in `unshare(1)`, which is not everywhere and mounts nothing; the
order matters, and Python has the call from 3.12 on.
"""

import ctypes
import os
import signal
import struct

_MOUNTS, _HOST, _IPC, _USERS, _PROCESSES, _NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAPABILITIES_VERSION_3 = 0x20080522
_READ_EVERYTHING = 1 << 2  # CAP_DAC_READ_SEARCH


def enter(libc: ctypes.CDLL, folder: str, folder_bytes: int) -> None:
  """Goes into new namespaces, with an empty `folder` in memory.

  Returns in the second process of a new process namespace. The processes
  above it end with it and as it does; if the first one is killed, the kernel
  ends all others of the namespace.

  Raises:
    OSError: if the kernel, or what it runs in, refuses.
  """
  user, group = os.geteuid(), os.getegid()
  kinds = _MOUNTS | _HOST | _IPC | _PROCESSES | _NETWORK
  _checked(libc.unshare(kinds | (_USERS if user else 0)), "unshare")
  if user:
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"),
                       ("gid_map", f"{group} {group} 1")):
      with open(f"/proc/self/{name}", "w") as file:
        file.write(line)
  _checked(
      libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "private /")
  _checked(
      libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV,
                 f"size={folder_bytes},nr_inodes=10000,mode=777".encode()),
      "tmpfs")
  _continue_in_child(libc)  # the first process of the namespace
  _continue_in_child(libc)  # an ordinary one, which signals can end


def _continue_in_child(libc: ctypes.CDLL) -> None:
  child = os.fork()
  if not child:
    die_with_parent(libc)
    return
  os.closerange(3, 4096)  # nobody but the program holds the way back
  _, status = os.waitpid(child, 0)
  code = os.waitstatus_to_exitcode(status)
  os._exit(code if code >= 0 else 128 - code)


def die_with_parent(libc: ctypes.CDLL) -> None:
  libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become(libc: ctypes.CDLL, user: int, keep_reading: bool) -> None:
  """From root to another user.

  Args:
    libc: the C library.
    user: the id of user and group, which no account should have.
    keep_reading: keeps the capability to read all files, for an interpreter
      in root's home; only where something else says which files these are.

  Raises:
    OSError: if this is not root, or root of nothing but itself.
  """
  libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
  os.setgroups([])
  os.setresgid(user, user, user)
  os.setresuid(user, user, user)
  die_with_parent(libc)  # changing the user took it back
  if keep_reading:
    try:
      _set_capabilities(libc, _READ_EVERYTHING)
    except OSError:  # it was not there to keep
      _set_capabilities(libc, 0)
  else:
    _set_capabilities(libc, 0)


def give_up_privileges(libc: ctypes.CDLL, reading: bool = False) -> None:
  """No capability, but that of reading if it is kept, and none to come."""
  if not reading:
    _set_capabilities(libc, 0)
  _checked(
      libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _set_capabilities(libc: ctypes.CDLL, capabilities: int) -> None:
  header = struct.pack("Ii", _CAPABILITIES_VERSION_3, 0)
  both = struct.pack("6I", capabilities, capabilities, 0, 0, 0, 0)
  _checked(libc.syscall(_capset(), header, both), "capset")


def _capset() -> int:
  return 126 if os.uname().machine == "x86_64" else 91


def _checked(result: int, what: str) -> None:
  if result:
    raise OSError(ctypes.get_errno(), what)
