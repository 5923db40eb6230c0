"""seccomp: the system calls that a generated program may not make.

A filter in the kernel that cannot be taken off again. It leaves a program what
computing needs, threads and files included, and takes what reaches other
processes, the network and the system. Numbers are those of Linux's headers.
"""

import ctypes
import errno
import os
import platform
import struct

# Each with its numbers on x86-64 and on 64-bit ARM; None where it is not.
_REFUSED = {
    # The network, Unix sockets included; a socketpair (asyncio) stays inside.
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # Other programs and processes; `clone` makes threads, see below.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281),
    # Processes that are there: looking into them, signals, priorities.
    "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130), "setpriority": (141, 140), "ioprio_set": (251, 30),
    # Memory that no limit counts, or that outlives the program.
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "userfaultfd": (323, 282), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # Properties of files, which Landlock leaves open.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # A second way to make system calls.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Namespaces and mounts.
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "move_mount": (429, 429), "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    # The system.
    "bpf": (321, 280), "perf_event_open": (298, 241), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
}

# Only towards the calling process, which is 0 or its id.
_ONLY_SELF = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239)}
# Here 0 would be the group of processes.
_ONLY_OWN_ID = {"kill": (62, 129), "tgkill": (234, 131)}

_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x10000
# Later calls than this list knows do not exist, as on an older kernel. x86's
# second numbering, from 1 << 30 on, falls under this, too.
_LAST = 451

# By machine: the column of the tables, and linux/audit.h's name of it.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# BPF instructions (linux/bpf_common.h) and verdicts (linux/seccomp.h).
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_BITS, _RETURN = (
    0x20, 0x15, 0x25, 0x45, 0x06)
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENT_AT = 0, 4, 16

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def refuse(libc: ctypes.CDLL) -> None:
  """Puts the filter on this thread and those that it will start.

  Args:
    libc: the C library; the process has `no_new_privs`.

  Raises:
    OSError: if the kernel has no filters, or the machine is another one.
  """
  if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
    raise OSError(errno.ENOSYS, f"no list for {platform.machine()}")
  content = program(platform.machine(), os.getpid())
  instructions = ctypes.create_string_buffer(content, len(content))
  header = struct.pack(
      "HxxxxxxP", len(content) // 8, ctypes.addressof(instructions))
  if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
    raise OSError(ctypes.get_errno(), "seccomp")


def program(machine: str, process: int) -> bytes:
  """The filter for one process, as the kernel reads it.

  Args:
    machine: a key of `_MACHINES`.
    process: the id that the process may name as its own.
  """
  column, audit = _MACHINES[machine]
  denied = (_RETURN, 0, 0, _ERROR | errno.EPERM)
  absent = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
  allowed = (_RETURN, 0, 0, _ALLOW)
  code = [
      (_LOAD, 0, 0, _MACHINE_AT), (_JUMP_EQUAL, 1, 0, audit),
      (_RETURN, 0, 0, _KILL),
      (_LOAD, 0, 0, _NUMBER_AT), (_JUMP_ABOVE, 0, 1, _LAST), absent,
      # glibc turns to `clone`, whose flags a filter can see, without it.
      (_JUMP_EQUAL, 0, 1, _CLONE3[column]), absent]
  for numbers in _REFUSED.values():
    if numbers[column] is not None:
      code += [(_JUMP_EQUAL, 0, 1, numbers[column]), denied]

  def unless(number, *tests):
    code.extend([
        (_JUMP_EQUAL, 0, len(tests) + 3, number),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        *((jump, len(tests) - at, 0, value)
          for at, (jump, value) in enumerate(tests)),
        denied, allowed])

  unless(_CLONE[column], (_JUMP_BITS, _CLONE_THREAD))
  for numbers in _ONLY_SELF.values():
    unless(numbers[column], (_JUMP_EQUAL, 0), (_JUMP_EQUAL, process))
  for numbers in _ONLY_OWN_ID.values():
    unless(numbers[column], (_JUMP_EQUAL, process))
  return b"".join(struct.pack("HBBI", *line) for line in code + [allowed])
