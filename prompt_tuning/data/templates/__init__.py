"""Prompts around the rows of a dataset, as text files that a user can replace.

A template is text with placeholders, `{code}`; other braces are text. One
line feed at the end of a file is the file's own and not the template's.
"""

from collections.abc import Mapping, Sequence
import hashlib
import os
import pathlib
import re

from prompt_tuning import errors

_OWN = pathlib.Path(__file__).parent


class Template:
  """A text with placeholders, read from a file."""

  def __init__(
      self, path: str | os.PathLike, placeholders: Sequence[str],
      answers: Sequence[str] = ()):
    """Reads the file.

    Args:
      path: a file, or the bare name of one in this folder, "mbpp".
      placeholders: the names that must occur.
      answers: names that must not, for they are what is to be predicted.

    Raises:
      UserError: if the file cannot be read, or its placeholders are others.
    """
    self.path = os.fspath(path)
    own = _OWN / f"{path}.txt"
    try:
      text = (own if own.is_file() else pathlib.Path(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise errors.UserError(
          f"cannot read the template {self.path} "
          f"({getattr(error, 'strerror', None) or error}): give a text file "
          f"with {_braced(placeholders)}, or the name of one of ours, "
          f"{', '.join(names())}") from error
    self.text = text.removesuffix("\n")
    for name in placeholders:
      if f"{{{name}}}" not in self.text:
        raise errors.UserError(
            f"the template {self.path} has no {{{name}}}: put it where the "
            f"{name} of a row belongs (it needs {_braced(placeholders)})")
    for name in answers:
      if f"{{{name}}}" in self.text:
        raise errors.UserError(
            f"the template {self.path} has {{{name}}}, which is what the model "
            "is to predict: take it out")
    self._find = re.compile("|".join(
        re.escape(f"{{{name}}}") for name in placeholders))

  def fill(self, values: Mapping[str, str]) -> str:
    """The text with values for placeholders, whatever braces these have."""
    return self._find.sub(lambda found: values[found[0][1:-1]], self.text)

  @property
  def fingerprint(self) -> str:
    """Changes with the text."""
    return hashlib.sha256(self.text.encode()).hexdigest()


def names() -> list[str]:
  """The templates of this folder."""
  return sorted(path.stem for path in _OWN.glob("*.txt"))


def _braced(names: Sequence[str]) -> str:
  return " and ".join(f"{{{name}}}" for name in names)
