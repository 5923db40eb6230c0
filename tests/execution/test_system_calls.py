"""The seccomp filter, run instruction by instruction as the kernel does.

Oracles: the numbers of Linux's headers (asm/unistd_64.h, asm-generic/unistd.h),
and, on 64-bit x86, the headers themselves where they are installed.
"""

import errno
import pathlib
import platform
import re
import struct

import pytest

from prompt_tuning.execution.inside import system_calls

ALLOWED = 0x7FFF0000
REFUSED, ABSENT = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
KILLED = 0x80000000
OWN = 1234

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "mmap": 9, "socketpair": 53, "exit_group": 231,
        "openat": 257, "socket": 41, "fork": 57, "execve": 59, "ptrace": 101,
        "kill": 62, "tgkill": 234, "prlimit64": 302, "clone": 56,
        "clone3": 435, "io_uring_setup": 425},
    "aarch64": {
        "read": 63, "write": 64, "mmap": 222, "socketpair": 199,
        "exit_group": 94, "openat": 56, "socket": 198, "execve": 221,
        "ptrace": 117, "kill": 129, "tgkill": 131, "prlimit64": 261,
        "clone": 220, "clone3": 435, "io_uring_setup": 425}}


def verdict(machine, number, argument=0, audit=None):
  """What the filter says of a call (linux/filter.h, the codes it uses)."""
  data = struct.pack(
      "<IIQ6Q", number, audit or AUDIT[machine], 0, argument, 0, 0, 0, 0, 0)
  program = list(struct.iter_unpack(
      "HBBI", system_calls.program(machine, OWN)))
  at, loaded = 0, 0
  while True:
    code, true, false, value = program[at]
    at += 1
    if code == 0x06:
      return value
    if code == 0x20:
      loaded, = struct.unpack_from("<I", data, value)
    else:
      holds = {0x15: loaded == value, 0x25: loaded > value,
               0x45: bool(loaded & value)}[code]
      at += true if holds else false


@pytest.mark.parametrize("machine", AUDIT)
def test_verdicts(machine):
  number = NUMBERS[machine]
  for name in ("read", "write", "mmap", "socketpair", "exit_group", "openat"):
    assert verdict(machine, number[name]) == ALLOWED, name
  for name in ("socket", "fork", "execve", "ptrace", "io_uring_setup"):
    if name in number:
      assert verdict(machine, number[name]) == REFUSED, name
  # Threads are made, processes are not.
  assert verdict(machine, number["clone"], 0x3D0F00) == ALLOWED
  assert verdict(machine, number["clone"], 17) == REFUSED
  assert verdict(machine, number["clone3"]) == ABSENT
  # Signals to itself and to nobody else: no group, not all.
  for name in ("kill", "tgkill"):
    assert verdict(machine, number[name], OWN) == ALLOWED
    for other in (0, 1, OWN + 1, 2**32 - 1):
      assert verdict(machine, number[name], other) == REFUSED
  assert verdict(machine, number["prlimit64"], 0) == ALLOWED
  assert verdict(machine, number["prlimit64"], OWN) == ALLOWED
  assert verdict(machine, number["prlimit64"], 1) == REFUSED
  # Calls that are not known, x86's second numbering, other machines.
  assert verdict(machine, 452) == ABSENT
  assert verdict(machine, 0x40000000 + 41) == ABSENT
  assert verdict(machine, number["read"], audit=0x40000003) == KILLED


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another table")
def test_numbers_are_the_headers():
  header = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
  if not header.exists():
    pytest.skip("the headers of Linux are not installed")
  numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))

  tables = (system_calls._REFUSED | system_calls._ONLY_SELF
            | system_calls._ONLY_OWN_ID)
  for name, (number, _) in tables.items():
    assert int(numbers[name]) == number, name
