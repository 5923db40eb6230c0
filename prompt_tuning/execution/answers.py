"""CRUXEval: the answer in a generated text.

The text is the prompt and what a model wrote behind it, as LOPA's predictions
are. An answer is an expression: a call `f(…)` that gives the output, or the
output itself (Gu et al. 2024, arXiv 2401.03065).
"""

import itertools

MODES = ("input", "output")


def answer(text: str, prompt: str, mode: str) -> str:
  """What a model answered.

  Decoding may change a character or two of the prompt, such as the line feed
  at its end; everything from the first difference on counts as generated.

  Args:
    text: the prompt and the generated text.
    prompt: what the model was given.
    mode: "input" or "output", what was asked for.

  Returns:
    The expression; "" for a text that is no longer than its prompt.
  """
  if len(text) <= len(prompt):
    return ""
  same = sum(1 for _ in itertools.takewhile(
      lambda pair: pair[0] == pair[1], zip(text, prompt)))
  generated = text[same:]
  return called(generated) if mode == "input" else value(generated)


def called(generated: str) -> str:
  """`assert f(1) == 2` -> `f(1)`."""
  before = generated.split("==", 1)[0]
  if "assert f" in before:
    before = "f" + before.split("assert f")[1].strip()
  return before.strip()


def value(generated: str) -> str:
  """`assert f(1) == 2\\n[/ANSWER]` -> `2`."""
  parts = generated.split("==")
  after = parts[1] if len(parts) > 1 else generated
  return after.split("[/ANSWER]")[0].strip()
