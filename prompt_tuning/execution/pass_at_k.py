"""pass@k: whether one of k programs works, from n that were tried.

The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), section 2.1, and
intervals over problems.
"""

from collections.abc import Sequence

import numpy as np

from prompt_tuning import errors


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """1 - C(n - c, k) / C(n, k), for one problem.

  The quotient of binomials is a product of k factors below 1, so that nothing
  overflows.

  Args:
    samples: n, programs that were tried; at least k.
    correct: c, those that passed.
    k: how many one may hand in.

  Raises:
    UserError: if not 0 <= c <= n, or not 1 <= k <= n.
  """
  if not (0 <= correct <= samples and 1 <= k <= samples):
    raise errors.UserError(
        f"pass@{k} of {correct} correct among {samples} samples is undefined: "
        "give 0 <= correct <= samples and 1 <= k <= samples.")
  if samples - correct < k:
    return 1.0
  chosen = np.arange(k)
  # All k are wrong: (n-c)/n · (n-c-1)/(n-1) · …
  return float(1 - np.prod((samples - correct - chosen) / (samples - chosen)))


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 10_000,
) -> tuple[float, float]:
  """The 95 % interval of a mean over problems, by the percentile bootstrap.

  Problems are drawn with replacement; the samples of a problem are not, so the
  interval says how far the figure depends on the choice of problems.

  Args:
    values: a problem's pass@k each.
    seed: of the draws.
    resamples: how many sets of problems are drawn.

  Returns:
    The 2.5th and the 97.5th percentile of the means.
  """
  values = np.asarray(values, np.float64)
  draw = np.random.default_rng(seed)
  means = np.empty(resamples)
  for start in range(0, resamples, 1000):  # 1000 x problems at a time
    count = min(1000, resamples - start)
    drawn = draw.integers(len(values), size=(count, len(values)))
    means[start:start + count] = values[drawn].mean(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def table(
    counts: Sequence[tuple[int, int]], ks: Sequence[int], seed: int = 0,
    too_few_fail: bool = False,
) -> dict[str, dict]:
  """pass@k of a benchmark, for every k that all problems have samples for.

  Args:
    counts: a problem's (samples, correct) each.
    ks: the k that are wanted.
    seed: of the intervals.
    too_few_fail: gives every k; a problem with fewer samples counts 0, as in
      CRUXEval's own scorer.

  Returns:
    {"pass@k": {"value": mean, "interval_95": [low, high]}}, in [0, 1].
  """
  fewest = min(samples for samples, _ in counts)
  found = {}
  for k in sorted({k for k in ks if too_few_fail or k <= fewest}):
    values = [pass_at_k(samples, correct, k) if k <= samples else 0.0
              for samples, correct in counts]
    found[f"pass@{k}"] = {
        "value": float(np.mean(values)),
        "interval_95": list(bootstrap_interval(values, seed))}
  return found
