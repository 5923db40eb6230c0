"""Compares the prompts in a folder, and finds the nearest to start from.

    python -m prompt_tuning.scripts.similar_prompts runs/ --picture tasks.png
    python -m prompt_tuning.scripts.similar_prompts sources/ \\
        --target rte.npy --nearest 3

The first prints the similarity of every pair, the second the source prompts
that are most similar to the target's: PROMPT_FILE of configs/prompts/
from_file.gin starts training from one (SPoT, Vu et al. 2022, arXiv 2110.07904).

A target's prompt need not be good yet: the paper embeds a task by its prompt
after 10,000 steps.
"""

import argparse
import os
import sys

from prompt_tuning import errors
from prompt_tuning.formats import prompt_file
from prompt_tuning.train import comparison
from prompt_tuning.transfer import similarity


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.similar_prompts",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", help="prompts of one base model, at any depth")
  parser.add_argument(
      "--target", default=None, metavar="PATH",
      help="rank the others by their similarity to this prompt")
  parser.add_argument(
      "--nearest", type=int, default=5, metavar="K",
      help="how many to rank (default: 5)")
  parser.add_argument(
      "--metric", choices=similarity.METRICS, default="average",
      help="cosine of the prompts' mean positions (default), mean cosine over "
      "all pairs of positions, or cosine of all numbers")
  parser.add_argument(
      "--picture", default=None, metavar="PNG",
      help="draw the similarity of every pair")
  flags = parser.parse_args(arguments)
  with errors.reported():
    print(compare(
        flags.folder, flags.target, flags.nearest, flags.metric,
        flags.picture), end="")


def compare(
    folder: str, target: str | None = None, count: int = 5,
    metric: str = "average", picture: str | None = None,
) -> str:
  """What the command prints: a Markdown table.

  Args:
    folder: see `similarity.find`.
    target: a prompt of any format; None compares every pair.
    count: how many to rank.
    metric: a name in `similarity.METRICS`.
    picture: a file to draw every pair into; None draws nothing.

  Raises:
    UserError: if there is nothing to compare, or it cannot be compared.
  """
  paths = similarity.find(folder)
  if target is not None:
    if count < 1:
      raise errors.UserError(
          f"--nearest is {count}: ask for 1 prompt or more.")
    itself = os.path.realpath(target)
    paths = [path for path in paths if os.path.realpath(path) != itself]
    if not paths:
      raise errors.UserError(
          f"{folder} holds no prompt but the target: add prompts of others.")
    paths = [target, *paths]
  prompts = similarity.read_all(paths)
  names = prompt_file.short_names(paths)
  if picture:
    similarity.draw(
        picture, names, similarity.similarities(prompts, metric),
        f"Similarity of prompts ({metric})")
  if target is None:
    found = similarity.similarities(prompts, metric)
    return comparison.markdown([
        {"prompt": name} | {
            other: float(f"{value:.3f}") for other, value in zip(names, row)}
        for name, row in zip(names, found)])
  ranked = similarity.nearest(
      prompts[0], dict(zip(paths[1:], prompts[1:])), count, metric)
  return comparison.markdown([
      {"rank": i + 1, "prompt": path, "similarity": float(f"{value:.4f}")}
      for i, (path, value) in enumerate(ranked)])


if __name__ == "__main__":
  sys.exit(main())
