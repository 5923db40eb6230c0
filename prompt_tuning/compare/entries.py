"""Gin files with their bindings, as a gin file lists them.

    ['models/gpt2.gin', 'prompts/lora.gin', {'LORA_RANK': 16}]

A file is a path in prompt_tuning/configs, or any other. Bindings belong to the
file before them and go where it goes.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from prompt_tuning import command_line, errors

Entries = Sequence[str | Mapping[str, Any]]

# The flag for a folder of tokenised examples that several runs share.
CACHE = "--gin_bindings=utils.DatasetConfig.cache_dir={!r}"


def flags(entries: Entries, keep: Callable[[str], bool] = bool) -> list[str]:
  """The flags of a command.

  Args:
    entries: see the module.
    keep: whether a file, as it is written, is wanted.

  Raises:
    UserError: what is neither, or bindings in front of all files.
  """
  files, bindings, kept = [], [], None
  for entry in entries:
    if isinstance(entry, str):
      kept = keep(entry)
      if kept:
        files.append(f"--gin_file={_path(entry)}")
    elif isinstance(entry, Mapping) and kept is not None:
      if kept:
        bindings += [
            f"--gin.{name}={value!r}" for name, value in entry.items()]
    else:
      raise errors.UserError(
          f"{entry!r} in {list(entries)} is neither a gin file nor a dict of "
          "bindings behind one.")
  return files + bindings


def bound(entries: Entries, name: str) -> Any:
  """What bindings of the entries set a name to; None if none does."""
  values = [entry[name] for entry in entries
            if isinstance(entry, Mapping) and name in entry]
  return values[-1] if values else None


def is_model(file: str) -> bool:
  """Whether a file sets up a model, and not a method's own modules."""
  return os.path.dirname(file).split("/")[-1] != "prompts"


def _path(file: str) -> str:
  own = command_line.PACKAGE / "configs" / file
  return str(own) if own.is_file() else file
