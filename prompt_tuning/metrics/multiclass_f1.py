"""F1 of several classes, each as important as the others."""

from collections.abc import Sequence


def multiclass_f1(
    targets: Sequence[int], predictions: Sequence[int], num_classes: int,
) -> dict[str, float]:
  """The mean of the classes' F1; one that never occurs counts as 0.

  Args:
    targets: N classes, 0 to num_classes - 1.
    predictions: N classes; others than these are wrong.
    num_classes: C.

  Returns:
    {"mean_{C}class_f1": percent, 0 to 100}.
  """
  pairs = list(zip(targets, predictions, strict=True))
  total = 0.0
  for one in range(num_classes):
    right = sum(target == prediction == one for target, prediction in pairs)
    named = sum((target == one) + (prediction == one)
                for target, prediction in pairs)
    total += 2.0 * right / named if named else 0.0
  return {f"mean_{num_classes}class_f1": 100.0 * total / num_classes}
