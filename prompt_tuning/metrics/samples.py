"""A few predictions to read, right and wrong ones."""

from collections.abc import Callable, Sequence
import random

from prompt_tuning.data import tasks

_COUNT = 8


def samples(
    judged: Sequence[tasks.Judged], title: str, wrong: bool = True,
    show: Callable[[tasks.Judged], str] | None = None,
) -> dict[str, str]:
  """Some predictions, and some of those that are wrong.

  They are drawn alike at every evaluation, so that one can follow them.

  Args:
    judged: all predictions of a task.
    title: in front of the texts' names.
    wrong: whether to show wrong predictions, too.
    show: one prediction as text; None: input, target and prediction.

  Returns:
    {"{title} samples": …, "{title} negative samples": …}.
  """
  show = show or classification
  found = {f"{title} samples": _drawn(judged, show)}
  if wrong:
    found[f"{title} negative samples"] = _drawn(
        [one for one in judged if not _right(one)], show)
  return found


def _right(one: tasks.Judged) -> bool:
  if isinstance(one.goal, dict):
    goal, guess = one.goal["value"], one.guess["value"]
  else:
    goal, guess = one.goal, one.guess
  return guess in goal if isinstance(goal, list) else guess == goal


def _drawn(judged, show) -> str:
  if len(judged) > _COUNT:
    judged = random.Random(0).sample(list(judged), _COUNT)
  return "\n\n".join(map(show, judged))


def classification(one: tasks.Judged) -> str:
  """Input, target and prediction."""
  text = one.example.get("inputs_pretokenized", one.example["inputs"])
  return (f"example: {text}\n\ntarget: {one.target}\n\n"
          f"prediction: {one.output}\n")


def question(one: tasks.Judged) -> str:
  """Context, question, all different answers and the predicted one."""
  answers = "; ".join(sorted(set(one.example["answers"])))
  return (f"context: {one.example['context']}\n"
          f"question: {one.example['question']}\n"
          f"answers: {answers}\nprediction: {one.output}")
