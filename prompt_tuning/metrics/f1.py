"""F1 of the class 1 among 0 and 1, and of a text among two."""

from collections.abc import Sequence


def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """The harmonic mean of precision and recall of class 1.

  A prediction that is neither 0 nor 1 counts as the wrong one of them, as in
  T5's GLUE.

  Args:
    targets: N classes, 0 or 1.
    predictions: N classes.

  Returns:
    {"f1": percent, 0 to 100; 0 if class 1 is neither there nor predicted}.
  """
  right = wrong = 0
  for target, prediction in zip(targets, predictions, strict=True):
    if prediction not in (0, 1):
      prediction = 1 - target
    right += target == prediction == 1
    wrong += target != prediction
  return {"f1": 200.0 * right / (2 * right + wrong) if right else 0.0}


def f1_of_text(
    targets: Sequence[str], predictions: Sequence[str], positive: str
) -> dict[str, float]:
  """`f1` of labels that are texts, outer white space aside.

  Args:
    targets: N texts.
    predictions: N texts.
    positive: the text of class 1; any other is class 0.
  """
  return f1(*(
      [int(text.strip() == positive.strip()) for text in texts]
      for texts in (targets, predictions)))
