"""T5X's gin flags, and what happens between the flags and the run.

    python -m prompt_tuning.train --gin_file=a.gin --gin_file=b.gin \\
        --gin.NAME=value --gin_search_paths=dir1,dir2 --gin_bindings="X = 1"

Mistakes in gin files and flags end in one sentence and exit status 2.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import difflib
import inspect
import os
import pathlib
import re
import sys
import tokenize
from typing import Any

import gin

from prompt_tuning import errors, t5x_names

PACKAGE = pathlib.Path(__file__).parent

# Later files win, so a file must come after those that it refines.
_ORDER = (
    ("models", "a model"), ("prompts", "a prompt"),
    ("encoders", "an encoder"), ("models/sizes", "a size"),
    ("models/decoding", "a decoding"),
    ("runs", "a run"))


def main(function: Callable, arguments: Sequence[str] | None = None):
  """Parses gin flags, then calls the gin-configured `function`.

  Args:
    function: all of its arguments are bound in gin.
    arguments: of the command line; the process's if None.

  Returns:
    What `function` returns.
  """
  from prompt_tuning.train import processes  # JAX, which not all need

  with errors.reported(), processes.leaving_together():
    configure(sys.argv[1:] if arguments is None else arguments)
    return call(function)


def configure(arguments: Sequence[str]) -> None:
  """Reads the gin files and bindings that the flags name.

  Raises:
    UserError: on an unknown flag, file or name, or files in the wrong order.
  """
  parser = argparse.ArgumentParser(
      description="Every setting is bound in gin; see prompt_tuning/configs.",
      allow_abbrev=False)
  parser.add_argument(
      "--gin_file", action="append", default=[], help="may be repeated")
  parser.add_argument(
      "--gin_search_paths", action="append", default=[],
      help="folders to look for gin files in, separated by commas")
  parser.add_argument(
      "--gin_bindings", action="append", default=[], metavar="'NAME = value'")
  parser.add_argument("--tfds_data_dir", default=None)
  flags, rest = parser.parse_known_args(_joined(arguments))
  for extra in rest:
    if not extra.startswith("--gin."):
      raise errors.UserError(
          f"Unknown argument {extra!r}: settings are given as "
          "--gin.NAME=value, files as --gin_file=path.")
  if not flags.gin_file:
    raise errors.UserError(
        "No --gin_file is given: name a model's and a run's, such as "
        "prompt_tuning/configs/runs/prompt_finetune.gin.")
  search = [p for paths in flags.gin_search_paths for p in paths.split(",")]
  if flags.tfds_data_dir:
    os.environ["TFDS_DATA_DIR"] = flags.tfds_data_dir
  _add_search_paths(search)
  files = [_existing(path, search) for path in flags.gin_file]
  _check_order(files, search)
  try:
    gin.parse_config_files_and_bindings(files, None, finalize_config=False)
  except _GIN_ERRORS as error:
    raise errors.UserError(_parse_sentence(error)) from error
  declared = {*_macro_values(), *_macros_used()}
  given = [_Binding.of(text, "--gin_bindings=") for text in flags.gin_bindings]
  given += [_Binding.of(text.removeprefix("--gin."), "--gin.")
            for text in rest]
  given = [binding for binding in given if binding]
  for binding in given:
    binding.apply()
  _check_given([b.name for b in given], {*declared, *_macros_used()})
  _check_macros()


def call(function: Callable):
  """Calls a function as it is configured; gin's words become a sentence."""
  try:
    configured = gin.get_configurable(function)
  except ValueError as error:
    raise errors.UserError(
        f"No gin file sets up {function.__name__!r}: add the file of "
        "prompt_tuning/configs/runs that does.") from error
  try:
    return configured()
  except errors.UserError as error:
    # gin appends "In call to configurable …"; a user needs the message alone.
    raise errors.UserError(_first_part(error)) from error
  except (TypeError, RuntimeError, ValueError) as error:
    sentence = _missing_sentence(error)
    if sentence is None:
      raise
    raise errors.UserError(sentence) from error


def _joined(arguments: Sequence[str]) -> list[str]:
  """`--gin.X value` and `--gin.X=value` are the same, as for absl flags."""
  joined = []
  for argument in arguments:
    if (joined and joined[-1].startswith("--gin.") and "=" not in joined[-1]
        and not argument.startswith("--")):
      joined[-1] += "=" + argument
    else:
      joined.append(argument)
  return joined


def _add_search_paths(paths: Sequence[str]):
  for path in paths:
    if not os.path.isdir(path):
      raise errors.UserError(
          f"--gin_search_paths names {path}, which is not a folder.")
    gin.add_config_file_search_path(path)
  # The folder that holds the package, so that `prompt_tuning/configs/…` is
  # found in a checkout and in an installed wheel alike.
  gin.add_config_file_search_path(str(PACKAGE.parent))
  if "" not in sys.path:
    sys.path.insert(0, os.getcwd())  # gin files may import a user's module


def _existing(path: str, search: Sequence[str]) -> str:
  for name in (path, _as_here(path)):
    if _found(name, search):
      return name
  known = [
      str(p.relative_to(PACKAGE.parent)) for p in PACKAGE.rglob("*.gin")]
  by_name = {os.path.basename(p): p for p in known}
  near = difflib.get_close_matches(os.path.basename(path), by_name, 3)
  hint = f"; near it: {', '.join(by_name[n] for n in near)}" if near else ""
  raise errors.UserError(
      f"--gin_file {path} is not found, neither from here nor in "
      f"--gin_search_paths nor in the package{hint}.")


def _as_here(path: str) -> str:
  """The original kept some methods' files apart, in folders of their own."""
  path = path.replace("prompt_tuning/extended/perceptron/configs/",
                      "prompt_tuning/configs/")
  return path.replace("prompt_tuning/configs/extended/",
                      "prompt_tuning/configs/")


def _found(path: str, search: Sequence[str]) -> str | None:
  """Where the file of a --gin_file lies."""
  for folder in ("", *search, str(PACKAGE.parent)):
    if os.path.isfile(os.path.join(folder, path)):
      return os.path.abspath(os.path.join(folder, path))
  return None


def _rank(path: str) -> int | None:
  folder = os.path.dirname(path.replace(os.sep, "/"))
  for rank, (name, _) in reversed(list(enumerate(_ORDER))):
    if folder.endswith(f"/configs/{name}"):
      return rank
  return None


def _check_order(files: Sequence[str], search: Sequence[str]):
  latest, latest_file = -1, ""
  for file in files:
    rank = _rank(_found(file, search))
    if rank is None:
      continue
    if rank < latest:
      raise errors.UserError(
          f"Move --gin_file={file} before --gin_file={latest_file}: "
          f"{_ORDER[rank][1]} file sets what {_ORDER[latest][1]} file after "
          "it refines (order: models, prompts, encoders, models/sizes, "
          "models/decoding, runs).")
    latest, latest_file = rank, file


@dataclasses.dataclass(frozen=True)
class _Binding:
  """`NAME = value` as it was given on the command line."""

  name: str
  value: str
  flag: str  # for messages

  @classmethod
  def of(cls, text: str, prefix: str) -> "_Binding | None":
    """None, and a note, for what only T5X needs."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not (name and equals and value.strip()):
      raise errors.UserError(
          f"{prefix}{text} has no value: write {prefix}NAME=value.")
    if why := t5x_names.needless(name, value.strip()):
      print(f"note: {prefix}{text} has no effect here: {why}.",
            file=sys.stderr)
      return None
    return cls(*t5x_names.translated(name, value.strip()), prefix + text)

  def apply(self):
    """Binds it in gin."""
    statement = f"{self.name} = {self.value}"
    try:
      gin.parse_config(statement)
    except _GIN_ERRORS as error:
      if _UNKNOWN.search(str(error)):
        # It may be in a module that a file imports, though no file names it.
        with contextlib.suppress(*_GIN_ERRORS, NameError):
          gin.parse_config([*_imports(), statement])
          return
      raise errors.UserError(self._sentence(error)) from error

  def _sentence(self, error: Exception) -> str:
    text = str(error)
    if "parse token" in text or isinstance(
        error, (SyntaxError, tokenize.TokenError)):
      return (f"{self.flag} cannot be read: {self.value} is not a value; "
              "texts stand in quotes, and the shell takes a pair of its own "
              f"away: \"--gin.{self.name}='text'\".")
    return f"{self.flag}: {_parse_sentence(error)}"


_GIN_ERRORS = (
    ValueError, TypeError, SyntaxError, OSError, ImportError, AttributeError,
    RuntimeError, tokenize.TokenError)
_REGISTRATION = "from __gin__ import dynamic_registration"
_MISSING = re.compile(
    r"Required bindings for `?([^`']+)`? not provided in config: (\[.*?\])")
_NO_ARGUMENT = re.compile(
    r"(\w+)\(\) missing \d+ required [\w -]*arguments?: ([^\n]*)\n"
    r"(?:[^\n]*\n)*? *In call to configurable '\1'")
_UNKNOWN = re.compile(
    r"No configurable matching (?:reference )?['\"]@?([^'\"()]+)")
_NO_PARAMETER = re.compile(
    r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'")


def _parse_sentence(error: Exception) -> str:
  text = " ".join(str(error).split())
  place = re.search(r'In file "([^"]+)", line (\d+)', text)
  place = f" ({place[1]} line {place[2]})" if place else ""
  if unknown := _UNKNOWN.search(text):
    known = {".".join(name.split(".")[-2:]) for name, _ in
             gin.config._REGISTRY.items()}  # pylint: disable=protected-access
    return (f"gin knows no {unknown[1]!r}{place}{_near(unknown[1], known)}; "
            "a gin file that imports its module must come first.")
  if wrong := _NO_PARAMETER.search(text):
    configurable = gin.config._REGISTRY.get_match(wrong[1])
    known = inspect.signature(configurable.wrapped).parameters
    return (f"{wrong[1]} has no parameter {wrong[2]!r}{place}"
            f"{_near(wrong[2], known)}; it has {', '.join(known)}.")
  if isinstance(error, ImportError):
    return f"A gin file imports what is not installed: {text}"
  return f"gin: {text}"


def _imports() -> list[str]:
  """The import statements of all files, for a statement from elsewhere."""
  imported = gin.config._IMPORTS  # pylint: disable=protected-access
  modules = {one.format() for one in imported} - {_REGISTRATION}
  return [_REGISTRATION, *sorted(modules)]


def _near(name: str, known) -> str:
  near = difflib.get_close_matches(name, sorted(known), 3)
  return f" (did you mean {' or '.join(near)}?)" if near else ""


def _missing_sentence(error: Exception) -> str | None:
  """What gin says of arguments that nothing binds, in our words."""
  missing = _MISSING.search(str(error)) or _NO_ARGUMENT.search(str(error))
  if missing is None:
    return None
  return (f"{missing[1]} needs {missing[2]}: bind it in a gin file, or as "
          f"--gin.{missing[1].rsplit('.', 1)[-1]}.NAME=value.")


def _bindings():
  """(scope, selector, arguments) of everything that is bound."""
  config = gin.config._CONFIG  # pylint: disable=protected-access
  return [(*key, arguments) for key, arguments in config.items()]


def _macro_values() -> dict[str, Any]:
  return {scope: arguments.get("value")
          for scope, selector, arguments in _bindings()
          if selector == "gin.macro"}


def _macros_used() -> dict[str, str]:
  """Macro -> who uses it."""
  used = {}
  for scope, selector, arguments in _bindings():
    for name, value in arguments.items():
      user = scope if selector == "gin.macro" else (
          f"{selector.rsplit('.', 1)[-1]}.{name}")
      for macro in _macros_in(value):
        used.setdefault(macro, user)
  return used


def _check_given(names: Sequence[str], known):
  """A macro that nothing reads is a slip of the pen, or lacks its file."""
  for name in names:
    if "." not in name and name not in known:
      raise errors.UserError(
          f"Nothing uses {name}{_near(name, known)}; check the spelling, or "
          "add the gin file that it is for.")


def _check_macros():
  """Every macro that is used must have a value; gin finds out only later."""
  values = _macro_values()
  for macro, user in _macros_used().items():
    if macro not in values:
      raise errors.UserError(
          f"{macro} has no value but {user} needs it: give it as "
          f"--gin.{macro}=value.")
    if repr(values[macro]) == "%gin.REQUIRED":
      raise errors.UserError(
          f"{macro} has no value but {user} needs it: give it as "
          f"--gin.{macro}=value, or add the gin file that sets it behind "
          "the one that declares it.")


def _macros_in(value) -> list[str]:
  """Names of the macros in a bound value, nested containers included."""
  if isinstance(value, gin.config.ConfigurableReference):
    if value.selector == "gin.macro":
      return [value.scoped_selector.rsplit("/", 1)[0]]
    return []
  if isinstance(value, dict):
    return [m for item in (*value, *value.values()) for m in _macros_in(item)]
  if isinstance(value, (list, tuple)):
    return [m for item in value for m in _macros_in(item)]
  return []


def _first_part(error: Exception) -> str:
  return str(error).split("\n  In call to configurable")[0].strip()


def macro(name: str):
  """The value of a gin macro of the configuration that was read."""
  value = gin.query_parameter(f"%{name}")
  while _macros_in(value) == [getattr(value, "scoped_selector", "").rsplit(
      "/", 1)[0]]:
    value = gin.query_parameter(f"%{_macros_in(value)[0]}")
  return value
