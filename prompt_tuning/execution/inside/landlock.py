"""Landlock: which files a generated program may read, and where it may write.

The kernel's own unprivileged access control (Linux 5.13 and later), see
https://docs.kernel.org/userspace-api/landlock.html. What it leaves open (the
properties of files, whether a name exists) is in system_calls.py or stays open.
"""

from collections.abc import Sequence
import ctypes
import os
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_VERSION = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_EXECUTE, _CHARACTER_DEVICE, _SOCKET, _BLOCK_DEVICE, _IOCTL_DEVICE = (
    1 << 0, 1 << 6, 1 << 9, 1 << 11, 1 << 15)


def restrict(
    libc: ctypes.CDLL, readable: Sequence[str], folder: str,
    also: Sequence[str] = ("/dev/null",),
) -> None:
  """Allows reading below some paths and all that is ordinary in one folder.

  Args:
    libc: the C library; the process has `no_new_privs`.
    readable: files and folders; those that do not exist are passed over.
    folder: where files may be made, written and removed.
    also: files to read and to write.

  Raises:
    OSError: if the kernel has no Landlock.
  """
  version = _checked(libc.syscall(_CREATE_RULESET, None, 0, _VERSION))
  # What a kernel does not know must not be asked of it: 13 rights at first,
  # and one more with each of the versions 2, 3 and 5.
  known = (1 << 13 + sum(version >= v for v in (2, 3, 5))) - 1
  # TCP from version 4; signals and abstract Unix sockets out of here from 6.
  attributes = struct.pack(
      "QQQ", known, 3, 3)[:8 * (1 + (version >= 4) + (version >= 6))]
  rules = _checked(
      libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
  ordinary = known & ~(
      _EXECUTE | _CHARACTER_DEVICE | _SOCKET | _BLOCK_DEVICE | _IOCTL_DEVICE)
  for path in readable:
    _allow(libc, rules, path, _READ_FILE | _READ_DIR)
  for path in also:
    _allow(libc, rules, path, (_READ_FILE | _WRITE_FILE | _TRUNCATE) & known)
  _allow(libc, rules, folder, ordinary)
  _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
  os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
  try:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
  except OSError:
    return
  if not os.path.isdir(path):
    rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
  rule = struct.pack("=Qi", rights, descriptor)
  _checked(libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
  os.close(descriptor)


def _checked(result: int) -> int:
  if result < 0:
    raise OSError(ctypes.get_errno(), "Landlock")
  return result
