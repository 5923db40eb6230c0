"""Trainable and frozen: two parameter trees, split and merged by path.

A parameter's path is its names joined by "/", `encoder/prompt/prompt/prompt`.
The trainable ones are those that a list of patterns matches as a whole:

    split({"encoder": {"prompt": {...}, "mlp": {...}}}, [".*/prompt/.*"])
    -> {"encoder": {"prompt": {...}}}, {"encoder": {"mlp": {...}}}

The prompt alone, everything or anything between is the same engine with
another list; everything is asked for by `[".*"]`, exactly so.
"""

from collections.abc import Mapping, Sequence
import difflib
import re
from typing import Any

from flax import traverse_util

from prompt_tuning import errors

Tree = Mapping[str, Any]

# The patterns of whoever wants to train every parameter.
EVERYTHING = (".*",)


def match_any(patterns: Sequence[str]):
  """A function (path, _) -> bool: does any pattern match the whole path?"""
  compiled = [re.compile(pattern) for pattern in patterns]

  def matches(path: str, _=None) -> bool:
    return any(pattern.fullmatch(path) for pattern in compiled)

  return matches


def flatten(tree: Tree) -> dict[str, Any]:
  """Nested dicts -> {path: leaf}, in the tree's order."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict:
  """{path: leaf} -> nested dicts."""
  return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(params: Tree, patterns: Sequence[str]) -> tuple[dict, dict]:
  """Splits parameters (or anything in their shape) by path.

  Args:
    params: nested dicts.
    patterns: regular expressions; each must match at least one path.
      `EVERYTHING` is all parameters; no other patterns may match them all.

  Returns:
    The trainable tree and the frozen tree.

  Raises:
    UserError: if a pattern is malformed or matches nothing, which would leave
      a parameter untrained without a word, or if the patterns match the whole
      model by accident.
  """
  flat = flatten(params)
  for pattern in patterns:
    try:
      found = any(map(match_any([pattern]), flat))
    except re.error as error:
      raise errors.UserError(
          f"The pattern {pattern!r} in TRAINABLE_REGEX (or PROMPT_REGEX) is "
          f"not a regular expression: {error}.") from error
    if not found:
      raise errors.UserError(
          f"The pattern {pattern!r} in TRAINABLE_REGEX (or PROMPT_REGEX) "
          "matches no parameter as a whole; near it: "
          f"{', '.join(_nearest(pattern, flat))}.")
  matches = match_any(patterns)
  trainable = {k: v for k, v in flat.items() if matches(k)}
  if len(trainable) == len(flat) and tuple(patterns) != EVERYTHING:
    raise errors.UserError(
        f"TRAINABLE_REGEX = {list(patterns)} matches all {len(flat)} "
        f"parameters of the model ({', '.join([*flat][:3])}, …): match fewer, "
        f"or write {list(EVERYTHING)} to train everything on purpose.")
  return unflatten(trainable), unflatten(
      {k: v for k, v in flat.items() if not matches(k)})


def _nearest(pattern: str, paths: Sequence[str]) -> list[str]:
  """Up to three paths that are most like what a pattern spells."""
  words = re.sub(r"[^\w/]", "", pattern)
  # Short patterns are unlike every long path; some hint is better than none.
  return difflib.get_close_matches(words, paths, n=3, cutoff=0.0)


def merge(trainable: Tree, frozen: Tree) -> dict:
  """Undoes `split`."""
  return unflatten({**flatten(frozen), **flatten(trainable)})
