"""T5X's gin flags, and what happens between the flags and the run.

    python -m prompt_tuning.train --gin_file=a.gin --gin_file=b.gin \\
        --gin.NAME=value --gin_search_paths=dir1,dir2 --gin_bindings="X = 1"

Mistakes in gin files and flags end in one sentence and exit status 2.
"""

import argparse
from collections.abc import Callable, Sequence
import difflib
import os
import pathlib
import re
import sys

import gin

from prompt_tuning import errors

PACKAGE = pathlib.Path(__file__).parent

# Later files win, so a file must come after those that it refines.
_ORDER = (
    ("models", "a model"), ("prompts", "a prompt"),
    ("models/sizes", "a size"), ("models/decoding", "a decoding"),
    ("runs", "a run"))


def main(function: Callable, arguments: Sequence[str] | None = None):
  """Parses gin flags, then calls the gin-configured `function`.

  Args:
    function: a gin configurable all of whose arguments are bound in gin.
    arguments: of the command line; the process's if None.

  Returns:
    What `function` returns.
  """
  with errors.reported():
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
  bindings = flags.gin_bindings + [
      extra.removeprefix("--gin.").replace("=", " = ", 1) for extra in rest]
  search = [p for paths in flags.gin_search_paths for p in paths.split(",")]
  if flags.tfds_data_dir:
    os.environ["TFDS_DATA_DIR"] = flags.tfds_data_dir
  _check_order(flags.gin_file)
  _add_search_paths(search)
  files = [_existing(path, search) for path in flags.gin_file]
  try:
    gin.parse_config_files_and_bindings(files, bindings)
  except (ValueError, TypeError, SyntaxError, OSError, ImportError,
          AttributeError, RuntimeError) as error:
    raise errors.UserError(_parse_sentence(error)) from error


def call(function: Callable):
  """Calls a configured function; what gin says of it becomes a sentence."""
  _check_macros()
  try:
    return function()
  except (TypeError, RuntimeError, ValueError) as error:
    sentence = _missing_sentence(error)
    if isinstance(error, errors.UserError) or sentence is None:
      # gin appends "In call to configurable …" to a message; a user needs
      # the message alone.
      if isinstance(error, errors.UserError):
        raise errors.UserError(_first_line(error)) from error
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
  for folder in ("", *search, str(PACKAGE.parent)):
    if os.path.isfile(os.path.join(folder, path)):
      return path
  known = [
      str(p.relative_to(PACKAGE.parent)) for p in PACKAGE.rglob("*.gin")]
  by_name = {os.path.basename(p): p for p in known}
  near = difflib.get_close_matches(os.path.basename(path), by_name, 3)
  hint = f"; near it: {', '.join(by_name[n] for n in near)}" if near else ""
  raise errors.UserError(
      f"--gin_file {path} is not found, neither from here nor in "
      f"--gin_search_paths nor in the package{hint}.")


def _rank(path: str) -> int | None:
  folder = os.path.dirname(path.replace(os.sep, "/"))
  for rank, (name, _) in reversed(list(enumerate(_ORDER))):
    if folder == f"configs/{name}" or folder.endswith(f"/configs/{name}"):
      return rank
  return None


def _check_order(files: Sequence[str]):
  latest, latest_file = -1, ""
  for file in files:
    rank = _rank(file)
    if rank is None:
      continue
    if rank < latest:
      raise errors.UserError(
          f"Move --gin_file={file} before --gin_file={latest_file}: "
          f"{_ORDER[rank][1]} file sets what {_ORDER[latest][1]} file after "
          "it refines (order: models, prompts, models/sizes, "
          "models/decoding, runs).")
    latest, latest_file = rank, file


_MISSING = re.compile(
    r"Required bindings for `?([^`']+)`? not provided in config: (\[.*?\])")


def _parse_sentence(error: Exception) -> str:
  text = " ".join(str(error).split())
  unknown = re.search(r"No configurable matching ['\"]([^'\"]+)['\"]", text)
  if unknown:
    return (f"gin knows no {unknown[1]!r}: check the name; a gin file that "
            f"imports its module must come first. ({text})")
  if isinstance(error, ImportError):
    return f"A gin file imports what is not installed: {text}"
  return f"gin: {text}"


def _missing_sentence(error: Exception) -> str | None:
  text = str(error)
  missing = _MISSING.search(text)
  if missing:
    return (f"{missing[1]} needs {missing[2]}: bind it in a gin file, or as "
            f"--gin.{missing[1].rsplit('.', 1)[-1]}.NAME=value.")
  return None


def _check_macros():
  """Every macro that is used must have a value; gin finds out only later."""
  config = gin.config._CONFIG  # pylint: disable=protected-access
  values = {
      scope: bindings.get("value")
      for (scope, selector), bindings in config.items()
      if selector == "gin.macro"}
  used = {}
  for (scope, selector), bindings in config.items():
    where = scope if selector == "gin.macro" else selector.rsplit(".", 1)[-1]
    for name, value in bindings.items():
      for macro in _macros_in(value):
        argument = where if selector == "gin.macro" else f"{where}.{name}"
        used.setdefault(macro, argument)
  for macro, where in used.items():
    if macro not in values:
      raise errors.UserError(
          f"{macro} has no value but {where} needs it: give it as "
          f"--gin.{macro}=value.")
    if values[macro] is gin.REQUIRED:
      raise errors.UserError(
          f"{macro} has no value but {where} needs it: give it as "
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


def _first_line(error: Exception) -> str:
  return str(error).split("\n  In call to configurable")[0].strip()


def macro(name: str):
  """The value of a gin macro of the configuration that was read."""
  value = gin.query_parameter(f"%{name}")
  while _macros_in(value) == [getattr(value, "scoped_selector", "").rsplit(
      "/", 1)[0]]:
    value = gin.query_parameter(f"%{_macros_in(value)[0]}")
  return value
