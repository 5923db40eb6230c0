"""Classification by the likeliest of an example's candidates."""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.metrics import f1, multiclass_f1

# A candidate: ((example, place), whether it is right, its tokens).
Candidate = tuple[tuple[int, int], bool, int | None]


def rank_classification(
    targets: Sequence[Candidate],
    scores: Sequence[float],
    num_classes: int | None = None,
    by_length: bool = False,
    prefix: str = "",
) -> dict[str, float]:
  """Accuracy, F1 and, of two classes, the areas under ROC and PR curves.

  Args:
    targets: N candidates, all of an example's with its number.
    scores: N log-likelihoods.
    num_classes: how many candidates each example has, in the same order; None:
      it differs, and there is only accuracy, as where several are right.
    by_length: ranks by log-likelihood a token.
    prefix: of the names.

  Returns:
    Percents by name.
  """
  groups = {}
  for ((example, place), right, length), score in zip(
      targets, scores, strict=True):
    groups.setdefault(example, []).append(
        (place, right, score / length if by_length else score))
  ranked = [list(zip(*sorted(group))) for group in groups.values()]
  guesses = [int(np.argmax(np.array(scores, np.float32)))
             for _, _, scores in ranked]
  hits = [right[guess] for (_, right, _), guess in zip(ranked, guesses)]
  found = {"accuracy": 100.0 * sum(hits) / max(len(hits), 1)}
  if num_classes and all(sum(right) == 1 for _, right, _ in ranked):
    goals = [right.index(True) for _, right, _ in ranked]
    found |= _of_classes(
        goals, guesses, [scores for _, _, scores in ranked], num_classes)
  return {prefix + name: value for name, value in found.items()}


def _of_classes(goals, guesses, scores, num_classes) -> dict[str, float]:
  if num_classes > 2:
    return multiclass_f1.multiclass_f1(goals, guesses, num_classes)
  scores = np.array(scores, np.float32)  # [N, 2]
  odds = np.exp(scores - scores.max(axis=1, keepdims=True))
  return f1.f1(goals, guesses) | _areas(
      np.array(goals), odds[:, 1] / odds.sum(axis=1))


def _areas(goals: np.ndarray, chances: np.ndarray) -> dict[str, float]:
  """Areas under curves; NaN where a class is missing.

  Args:
    goals: [N] 0 or 1.
    chances: [N] probabilities of 1; equal ones, in float32, are one point of
      the curves.
  """
  order = np.argsort(-chances, kind="stable")
  ends = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
  right = np.cumsum(goals[order])[ends].astype(np.float64)
  wrong = ends + 1 - right
  if not (right[-1] and wrong[-1]):
    return {"auc-roc": float("nan"), "auc-pr": float("nan")}
  recall = np.insert(right / right[-1], 0, 0.0)
  fallout = np.insert(wrong / wrong[-1], 0, 0.0)
  return {
      "auc-roc": 100.0 * float(np.trapezoid(recall, fallout)),
      "auc-pr": 100.0 * float(
          np.sum(np.diff(recall) * right / (right + wrong)))}
