"""What commands of many runs keep, so that they go on where they stopped."""

from collections.abc import Callable
import json
import os
import time
from typing import Any

import jax

from prompt_tuning import errors, formats


def kept(
    folder: str, facts: Any, setting: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """What `make` gives, made now or read from the folder's result.json.

  Args:
    folder: of one part of the command; `make` makes it.
    facts: the settings that the result is made with.
    setting: the gin name of the command's whole folder, for the message.
    make: gives the result as JSON has it.

  Returns:
    The result with `seconds` and `made with`, the facts.

  Raises:
    UserError: if the folder has a result of other settings.
  """
  path = os.path.join(folder, "result.json")
  facts = json.loads(json.dumps(facts, default=str))
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      record = json.load(file)
    if record["made with"] != facts:
      raise errors.UserError(
          f"{folder} was made with other settings: give another {setting}, or "
          "delete this folder.")
    return record
  start = time.time()
  record = make() | {
      "seconds": round(time.time() - start, 1), "made with": facts}
  formats.write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
  return record


def keep_compiled(folder: str) -> None:
  """Keeps compiled programs there, unless JAX already has a place for them.

  Parts that differ in their seed, and commands that go on, compile nothing.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update(
        "jax_compilation_cache_dir", os.path.join(folder, "compiled"))
