"""Prints the folder where an installed package or module lies.

    python -m prompt_tuning.train \\
        --gin_search_paths="$(python -m prompt_tuning.scripts.find_module t5x)"

Nothing of it is run: a package that cannot be imported is found all the same.
"""

import argparse
import importlib.util
import os
import sys

from prompt_tuning import errors


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.find_module",
      description=__doc__.split("\n")[0])
  parser.add_argument("module", help="its dotted name, such as t5x.configs")
  flags = parser.parse_args(arguments)
  with errors.reported():
    print(find(flags.module))


def find(module: str) -> str:
  """The folder that holds a module's file; for a package, its own.

  Args:
    module: dotted name. The packages in front of the last dot are imported,
      the module itself is not.

  Raises:
    UserError: if it is not installed, or has no file.
  """
  try:
    spec = importlib.util.find_spec(module)
  except (ImportError, ValueError) as error:
    raise errors.UserError(
        f"{module!r} is not to be found ({error}): give the dotted name of an "
        "installed module.") from error
  if spec is None:
    raise errors.UserError(
        f"There is no module {module} in this Python ({sys.executable}): "
        "install it, or check the name.")
  # A package without an `__init__.py` has folders and no file.
  folders = list(spec.submodule_search_locations or ())
  if not folders and not spec.has_location:
    raise errors.UserError(
        f"{module} is built into Python: it has no file, and so no folder.")
  return os.path.abspath(folders[0] if folders else os.path.dirname(
      spec.origin))


if __name__ == "__main__":
  sys.exit(main())
