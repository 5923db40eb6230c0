"""Compares the prompts in a folder, and finds the nearest to start from.

    python -m prompt_tuning.scripts.similar_prompts runs/ --picture tasks.png
    python -m prompt_tuning.scripts.similar_prompts sources/ \\
        --target rte.npy --nearest 3 --average start.npy

The first prints the similarity of every pair, the second the source prompts
that are most similar to the target's, and writes their average, weighted by
similarity, with a card. PROMPT_FILE of configs/prompts/from_file.gin starts
training from one of them or from the average; PROMPT_FILES of configs/runs/
prompt_sweep_from_files.gin starts from each of several, to keep the best (SPoT,
Vu et al. 2022, arXiv 2110.07904, section 4.3).

A target's prompt need not be good yet: the paper embeds a task by its prompt
after 10,000 steps.
"""

import argparse
from collections.abc import Mapping
import contextlib
import os
import sys

import numpy as np

from prompt_tuning import errors
from prompt_tuning.formats import card, npy, prompt_file
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
      "--average", default=None, metavar="NPY",
      help="write the average of the ranked prompts, weighted by similarity")
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
        flags.picture, flags.average), end="")


def compare(
    folder: str, target: str | None = None, count: int = 5,
    metric: str = "average", picture: str | None = None,
    average: str | None = None,
) -> str:
  """What the command prints: a Markdown table.

  Args:
    folder: see `similarity.find`.
    target: a prompt of any format; None compares every pair.
    count: how many to rank.
    metric: a name in `similarity.METRICS`.
    picture: a file to draw every pair into; None draws nothing.
    average: a .npy file for the weighted average of those that are ranked;
      None writes nothing.

  Raises:
    UserError: if there is nothing to compare, or it cannot be compared.
  """
  if average is not None and target is None:
    raise errors.UserError(
        "--average needs --target: the weights are similarities to it.")
  paths = similarity.find(folder)
  if target is not None:
    if count < 1:
      raise errors.UserError(
          f"--nearest is {count}: ask for 1 prompt or more.")
    no_sources = {os.path.realpath(path) for path in (target, average) if path}
    paths = [path for path in paths
             if os.path.realpath(path) not in no_sources]
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
  sources = dict(zip(paths[1:], prompts[1:]))
  ranked = dict(similarity.nearest(prompts[0], sources, count, metric))
  shares = {}
  if average is not None:
    shares = similarity.weights(ranked)
    write_average(average, sources, shares, target, metric)
  return comparison.markdown([
      {"rank": i + 1, "prompt": path, "similarity": float(f"{value:.4f}")} | (
          {"weight": float(f"{shares[path]:.4f}")} if shares else {})
      for i, (path, value) in enumerate(ranked.items())])


def write_average(
    path: str, sources: Mapping[str, np.ndarray], weights: Mapping[str, float],
    target: str, metric: str,
) -> None:
  """Writes a weighted average and its card.

  Without a card on any of the sources nothing says which base they are of, and
  there is none beside the average.

  Args:
    path: a .npy file, made or replaced.
    sources: prompts by their paths.
    weights: of those that count.
    target: path of the prompt that they are similar to.
    metric: a name in `similarity.METRICS`.

  Raises:
    UserError: if lengths differ, or it cannot be written.
  """
  npy.write(path, similarity.weighted_average(sources, weights))
  cards = similarity.read_cards([*weights, target])
  if not cards:
    with contextlib.suppress(FileNotFoundError):  # of another prompt
      os.remove(card.card_path(path))
    return
  known = next(iter(cards.values()))
  card.write_card(
      path, base_model=known.base_model,
      base_fingerprint=known.base_fingerprint, task="", metric={}, step=0,
      settings={
          "average_of": dict(zip(
              prompt_file.short_names(list(weights)), weights.values())),
          "similar_to": os.path.basename(os.path.abspath(target)),
          "similarity": metric})


if __name__ == "__main__":
  sys.exit(main())
