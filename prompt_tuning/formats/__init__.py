"""Prompts on disk: one file a format, and the one way in which files are made.

A reader of a file sees its old content or its new content, never a part of
one: the bytes go to a hidden temporary name in the same folder, reach the disk,
and take the final name in one step.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import shutil
from typing import BinaryIO

from prompt_tuning.errors import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.ENOTDIR: "a part of that path is a file: choose another folder",
    errno.ENOENT: "its folder is gone: make it, or choose another",
    errno.EISDIR: "a folder has that name: choose another name",
}


def why_not_written(error: OSError) -> str:
  """The reason of a failed write and the way out, without a traceback."""
  return _REASONS.get(error.errno) or error.strerror or str(error)


def fsync_folder(path: str | os.PathLike) -> None:
  """Makes the names in a folder durable: a rename alone is only in memory."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file so that it is never seen half-written.

  Args:
    path: the file to make or to replace; its folder must exist.
    content: all of its bytes.

  Raises:
    UserError: if it cannot be written; what was there before is untouched.
  """
  with whole_file(path) as file:
    file.write(content)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """`write_whole` for content that is written piece by piece.

  Args:
    path: the file to make or to replace when the block ends without an error;
      its folder must exist.

  Yields:
    The file to write to.

  Raises:
    UserError: if it cannot be written; what was there before is untouched.
  """
  path = os.path.abspath(path)
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_folder(folder)
  except OSError as error:
    raise UserError(
        f"cannot write {path!r}: {why_not_written(error)}") from error
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)


def link_whole(source: str | os.PathLike, path: str | os.PathLike) -> None:
  """Gives a file a second name; a copy where links are refused.

  Args:
    source: a file that is on the disk.
    path: the name to make or to replace; its folder must exist.

  Raises:
    UserError: if it cannot be written; what was there before is untouched.
  """
  path = os.path.abspath(path)
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
  try:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    os.link(source, temporary)
    os.replace(temporary, path)
    fsync_folder(folder)
  except OSError:  # file systems without links, or another one
    with open(source, "rb") as file:
      write_whole(path, file.read())
  finally:
    with contextlib.suppress(OSError):  # stays if `path` was that file already
      os.unlink(temporary)


@contextlib.contextmanager
def whole_folder(
    path: str | os.PathLike, replace_empty: bool = False,
    replace: bool = False,
) -> Iterator[str]:
  """A folder that appears with all that it holds, or not at all.

  Args:
    path: the folder to make when the block ends without an error.
    replace_empty: whether it may be there already, if it holds nothing.
    replace: whether it may be there already; it stays until the new one is
      complete.

  Yields:
    A folder beside it, to be filled.

  Raises:
    UserError: if `path` exists or cannot be made.
  """
  path = os.path.abspath(path)
  if os.path.lexists(path) and not replace:
    if not replace_empty:
      raise UserError(f"{path!r} exists: give the name of a new folder")
    if os.path.islink(path) or not os.path.isdir(path) or os.listdir(path):
      raise UserError(
          f"{path} exists and is not an empty folder: give the name of a new "
          "one.")
  parent, name = os.path.split(path)
  folder = os.path.join(parent, f".{name}.{os.getpid()}.tmp")
  old = f"{folder}.old"
  try:
    os.makedirs(parent, exist_ok=True)
    os.mkdir(folder)
    yield folder
    if replace and os.path.lexists(path):
      os.rename(path, old)
    os.replace(folder, path)
    fsync_folder(parent)
  except OSError as error:
    raise UserError(
        f"cannot write {path!r}: {why_not_written(error)}") from error
  finally:
    for leftover in (folder, old):
      shutil.rmtree(leftover, ignore_errors=True)
