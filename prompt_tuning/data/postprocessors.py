"""What metrics compare: classes, numbers, answers and groups, out of texts.

Called as `postprocess_fn(text, example=..., is_target=...)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prompt_tuning.data import tasks

# Of a prediction that is no label, or empty.
INVALID = -1

_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these "
    "this those which whose your".split())


def class_id(
    text: str, labels: Sequence[str], example: tasks.Example | None = None,
    is_target: bool = False,
) -> int:
  """The place of a text among the labels; -1 if it is none of them."""
  del example, is_target
  return labels.index(text) if text in labels else INVALID


def number(
    text: str, example: tasks.Example | None = None, is_target: bool = False,
) -> float:
  """A text as a number; -1 if it is none."""
  del example, is_target
  try:
    return float(text)
  except ValueError:
    return float(INVALID)


def answers(text: str, example: tasks.Example, is_target: bool = False) -> Any:
  """A prediction as it is, and all right answers of a target."""
  return list(example["answers"]) if is_target else text


def multirc(text: str, example: tasks.Example, is_target: bool = False) -> dict:
  """A class, with the question that a target's answer belongs to."""
  found = {"value": class_id(text, ("False", "True"))}
  return {**found, "group": example["idx/question"]} if is_target else found


def record(text: str, example: tasks.Example, is_target: bool = False) -> dict:
  """An answer, or all right ones with the passage and query of a target."""
  if not is_target:
    return {"value": text}
  return {"value": list(example["answers"]),
          "group": (example["idx/passage"], example["idx/query"])}


def same_referent(
    text: str, example: tasks.Example, is_target: bool = False) -> int:
  """Whether the predicted words name the referent that the example asks of.

  One's words must be among the other's, determiners aside, and both or neither
  be possessive; an empty prediction is -1. The target is the example's label.
  """
  if is_target:
    return example["label"]
  guess = _content(text)
  if not guess:
    return INVALID
  referent = _content(
      example.get("targets_pretokenized", example["targets"]))
  if ("'" in guess) != ("'" in referent):
    return 0
  found, asked = set(guess.split(" ")), set(referent.split(" "))
  return int(found <= asked or asked <= found)


def _content(text: str) -> str:
  words = text.strip().lower().split(" ")
  return " ".join(word for word in words if word not in _DETERMINERS)


def ranking(
    text: Any, example: tasks.Example, is_target: bool = False) -> Any:
  """A candidate's place, whether it is right, and its tokens if known."""
  if not is_target:
    return text
  return (tuple(example["idx"]), bool(example["is_correct"]),
          example.get("targets_length"))


def translated(
    text: str, words: tuple[str, str], then: Callable[..., Any],
    example: tasks.Example | None = None, is_target: bool = False,
) -> Any:
  """Predictions of a model that was trained on other label words.

  Args:
    text: a target, or a prediction in the words of training.
    words: what to replace, and by what; targets have the latter already.
    then: the postprocessor of the new words.
    example: as the task gave it.
    is_target: whether `text` is the target.
  """
  if not is_target:
    text = text.replace(*words)
  return then(text, example=example, is_target=is_target)
