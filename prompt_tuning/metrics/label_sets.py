"""Which labels are predicted at all, and how often."""

import collections
from collections.abc import Sequence
import json

from prompt_tuning.data import tasks


def label_sets(
    judged: Sequence[tasks.Judged], title: str) -> dict[str, str]:
  """Sizes of the sets of right and predicted texts, and their shares.

  A label that is right but never predicted is missed throughout; one that is
  predicted but never right is made up.

  Args:
    judged: all predictions of a task.
    title: in front of the texts' names.

  Returns:
    {"{title} label stats": …, "{title} label distributions": JSON in a code
    block}.
  """
  right = collections.Counter(one.target for one in judged)
  guessed = collections.Counter(one.output for one in judged)
  sizes = {
      "target label set": right.keys(),
      "prediction label set": guessed.keys(),
      "target ∩ prediction": right.keys() & guessed.keys(),
      "target - prediction": right.keys() - guessed.keys(),
      "prediction - target": guessed.keys() - right.keys()}
  lines = [f"{name} cardinality: {len(labels)}"
           for name, labels in sizes.items()]
  shares = {
      f"{name} label distribution": {
          label: count / len(judged) for label, count in counts.items()}
      for name, counts in (("target", right), ("prediction", guessed))}
  return {f"{title} label stats": "\n\n".join(lines),
          f"{title} label distributions":
              f"```\n{json.dumps(shares, indent=2)}\n```"}
