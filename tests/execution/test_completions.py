"""MBPP's two stages: LOPA's own examples and counts, computed by its code."""

import json
import random

import pytest

from prompt_tuning import errors
from prompt_tuning.execution import completions

# What LOPA's clean-up of return statements gives.
UNTIL_RETURN = {
    "    return a + b\n    return c garbage": "\n    return a + b",
    "    x = 1\n    return x  # hello )) foo": "    x = 1\n    return x",
    "    if x:\n        return 1\n    else:\n        return 2 blah blah":
        "    if x:\n        return 1\n    else:\n        return 2",
    "    for i in x:\n        y += i\n    return (y +\n        1)\n    rest":
        "    for i in x:\n        y += i\n    return (y + 1)",
    "    pass": "\n    pass",
    "": "",
    "   \n": "   \n",
    # By the same code, on pieces of the rules that the above leave out.
    "  return x \\": "\n  return x",
    "  return (a, \\\n    b)\nx": "\n  return (a, b)",
    "  if x: return 1 y": "\n  if x: return 1",
    "  x = 1\ny = 2": "\n  x = 1",
}


@pytest.mark.parametrize("body, expected", UNTIL_RETURN.items())
def test_until_return(body, expected):
  assert completions.until_return(body) == expected


@pytest.mark.parametrize("stop", [
    "\ndef g():", "\nclass A:", "\nassert f", '\n"""', "\nprint(1)",
    "\nif __name__", "\n<|/q|>", "\n```", "<｜end▁of▁sentence｜>"])
def test_until_top_level_stops_at_the_first(stop):
  body = "  return 1"
  later = "\nassert 2\ndef h(): pass"

  assert completions.until_top_level(body + stop + later) == body


def test_until_top_level_takes_out_the_mark_of_the_beginning():
  mark = "<｜begin▁of▁sentence｜>"

  assert completions.until_top_level(f"{mark}  a{mark}\n  b") == "  a\n  b"


def test_counts_of_changed_canonical_solutions(shared_data):
  solutions = _solutions(shared_data)

  first = [completions.until_top_level(text) for text in solutions]
  second = [completions.until_return(text) for text in first]

  assert sum(a != b for a, b in zip(solutions, first)) == 3
  assert sum(a != b for a, b in zip(first, second)) == 973


def test_never_fails_and_keeps_to_a_line(shared_data):
  draw = random.Random(0)
  pieces = ["return", "return (", "\\", "  ", "    ", "\n", "\t", "# c", "'''",
            '"', "if x:", ")", "foo", "\r", "\x0c", "é", "\0", "lambda:"]

  for _ in range(500):
    text = "".join(draw.choices(pieces, k=draw.randrange(1, 14)))
    body = completions.until_return(text)

    # What is added is a line feed in front, and spaces where lines were.
    assert len(body) <= len(text) + 1
    assert set(body) <= set(text) | {"\n", " "}


@pytest.mark.parametrize("prompt, expected", [
    ("\n\ndef f(a):\n  '''x'''\n", "  if a:\n    return 1"),
    ("\n\ndef f(a):\n\t'''x'''\n", "\tif a:\n\t\treturn 1"),
    ("\n\ndef f(a):\n    '''x'''\n", "    if a:\n        return 1")])
def test_reindented(prompt, expected):
  body = "   if a:\n     return 1\n: of no use\n  // this, too\n.\n"

  # Llama-3-8B's: three spaces where the prompt has two, four or a tab.
  assert completions.reindented(body, prompt).rstrip("\n") == expected


def test_reindented_needs_a_function():
  with pytest.raises(errors.UserError, match="no function"):
    completions.reindented("  pass", "x = 1")


def _solutions(folder):
  path = folder / "mbpp" / "mbpp_release_v1.jsonl"
  return [json.loads(line)["canonical_solution"] for line in path.open()]
