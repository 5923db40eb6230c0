"""Shows what a prompt is near to: pieces of the vocabulary, and itself.

    python -m prompt_tuning.scripts.inspect --prompt runs/sst2/prompt.npy \\
        --base t5_1_1_base --picture sst2.png

For every position: its norm, and the pieces whose embeddings are nearest by
cosine and by distance (Lester et al. 2021, section 7). Positions of like
direction are put together in clusters. The prompt is a `.npy` file, a PEFT
adapter or a variable of a T5X checkpoint; without --base there are no pieces.

Read the cosines first: trained prompts are often far longer than embeddings,
and then the shortest embeddings are the nearest by distance, whatever they say.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import io
import os
import sys

import numpy as np

from prompt_tuning import errors, formats, pretrained
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.data import tokenizers, vocabularies
from prompt_tuning.scripts import convert
from prompt_tuning.train import comparison

_ROWS = 4096  # of the table in float64 at a time
_EXTRA_IDS = 100  # of T5's vocabularies, beside a `spiece.model`


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """The nearest rows of a table [V, H] for each of P positions.

  Attributes:
    ids: [P, N] rows, nearest first.
    values: [P, N] their cosines, falling, or distances, growing.
  """

  ids: np.ndarray
  values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What is found out about a prompt [P, H].

  Attributes:
    norms: [P] lengths of the positions.
    similarity: [P, P] cosines of the positions with each other.
    clusters: [P] the number of each position's cluster, 0 the largest.
    by_cosine: the nearest embeddings; None without a base.
    by_distance: the same, Euclidean.
    table_norm: mean length of the embeddings; None without a base.
  """

  norms: np.ndarray
  similarity: np.ndarray
  clusters: np.ndarray
  by_cosine: Neighbours | None = None
  by_distance: Neighbours | None = None
  table_norm: float | None = None


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.inspect",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--prompt", required=True, metavar="PATH")
  parser.add_argument(
      "--base", default=None, metavar="PATH",
      help="the model it was trained on; 'default' for the embedded one")
  parser.add_argument(
      "--vocabulary", default=None, metavar="PATH",
      help="a SentencePiece .model of T5's, a tokenizer.json or a .gguf file "
      "(default: the one in --base)")
  parser.add_argument(
      "--neighbours", type=int, default=5,
      help="pieces for each position (default: 5)")
  parser.add_argument(
      "--threshold", type=float, default=0.5,
      help="mean cosine that makes a cluster (default: 0.5)")
  parser.add_argument(
      "--picture", default=None, metavar="PNG", help="a file to draw")
  flags = parser.parse_args(arguments)
  with errors.reported():
    base = pretrained.path() if flags.base == "default" else flags.base
    prompt = convert.read(flags.prompt, base)
    table = None if base is None else base_lib.read_embedding_table(base)
    found = inspect(prompt, table, flags.neighbours, flags.threshold)
    words = pieces(found, open_vocabulary(flags.vocabulary, base))
    print(report(found, words))
    if flags.picture:
      draw(flags.picture, found)


# ------------------------------------------------------------------ numbers


def inspect(
    prompt: np.ndarray, table: np.ndarray | None = None, count: int = 5,
    threshold: float = 0.5,
) -> Inspection:
  """Measures a prompt.

  Args:
    prompt: [P, H].
    table: [V, H] the base's embeddings, of any float dtype.
    count: N, how many neighbours.
    threshold: see `cluster`.

  Raises:
    UserError: if an option is out of range, or the widths differ.
  """
  if count < 1 or not -1 <= threshold <= 1:
    raise errors.UserError(
        f"--neighbours {count} must be 1 or more, --threshold {threshold} "
        "from -1 to 1.")
  similarity = cosines(prompt, prompt)
  found = Inspection(
      np.linalg.norm(prompt.astype(np.float64), axis=1), similarity,
      cluster(similarity, threshold))
  if table is None:
    return found
  if prompt.shape[1] != table.shape[1]:
    raise errors.UserError(
        f"The prompt has the shape {prompt.shape} and the table "
        f"{table.shape}: give the base model that it was trained on; a prefix "
        "of keys and values is near no pieces.")
  by_cosine, by_distance, norm = nearest(prompt, table, count)
  return dataclasses.replace(
      found, by_cosine=by_cosine, by_distance=by_distance, table_norm=norm)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[P, H], [Q, H] -> [P, Q]; 0 where a row is zero."""
  return _unit(a) @ _unit(b).T


def _unit(rows: np.ndarray) -> np.ndarray:
  rows = rows.astype(np.float64)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def nearest(
    prompt: np.ndarray, table: np.ndarray, count: int
) -> tuple[Neighbours, Neighbours, float]:
  """The `count` nearest rows of `table` by cosine and by distance.

  Args:
    prompt: [P, H].
    table: [V, H], gone through in blocks.
    count: N; all rows if there are fewer. Of equal rows the first is nearer.

  Returns:
    Neighbours by cosine, by distance, and the mean norm of the rows.
  """
  prompt = prompt.astype(np.float64)
  similar, apart, norms = [], [], []
  for start in range(0, len(table), _ROWS):
    rows = table[start:start + _ROWS].astype(np.float64)
    squares = np.square(rows).sum(1)
    similar.append(cosines(prompt, rows))
    apart.append(np.square(prompt).sum(1)[:, None] + squares
                 - 2 * prompt @ rows.T)
    norms.append(np.sqrt(squares))
  similar, apart = np.concatenate(similar, 1), np.concatenate(apart, 1)
  by_cosine = np.argsort(-similar, axis=1, kind="stable")[:, :count]
  by_distance = np.argsort(apart, axis=1, kind="stable")[:, :count]
  # Anew for the few: what is left of a difference of squares is rounding.
  exact = np.linalg.norm(
      prompt[:, None] - table[by_distance].astype(np.float64), axis=-1)
  return (
      Neighbours(by_cosine, np.take_along_axis(similar, by_cosine, 1)),
      Neighbours(by_distance, exact), float(np.concatenate(norms).mean()))


def cluster(similarity: np.ndarray, threshold: float) -> np.ndarray:
  """Puts positions together, the most similar first (average linkage).

  Args:
    similarity: [P, P] cosines.
    threshold: two groups are one if the mean cosine between them is at least
      this.

  Returns:
    [P] numbers of clusters, from the largest; of equal ones, the first.
  """
  if len(similarity) == 1:
    return np.zeros(1, int)
  from scipy.cluster import hierarchy
  from scipy.spatial import distance

  apart = np.clip(1 - similarity, 0, 2)
  np.fill_diagonal(apart, 0)
  tree = hierarchy.linkage(
      distance.squareform(apart, checks=False), "average")
  raw = hierarchy.fcluster(tree, 1 - threshold, "distance")
  _, first, inverse, sizes = np.unique(
      raw, return_index=True, return_inverse=True, return_counts=True)
  rank = np.empty(len(sizes), int)
  rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
  return rank[inverse]


# -------------------------------------------------------------------- words


def open_vocabulary(
    path: str | None, base: str | None
) -> vocabularies.Vocabulary | None:
  """The vocabulary that a user names, or the one that lies in the base."""
  if path is None and base is not None:
    names = ("spiece.model", "tokenizer.json")
    inside = [os.path.join(base, name) for name in names]
    path = base if base.endswith(".gguf") else next(
        filter(os.path.isfile, inside), None)
  if path is None:
    return None
  if os.path.isfile(path) and not path.endswith((".json", ".gguf")):
    return vocabularies.SentencePieceVocabulary(path, _EXTRA_IDS)
  return tokenizers.from_path(path)


def pieces(
    found: Inspection, vocabulary: vocabularies.Vocabulary | None
) -> dict[int, str]:
  """How to write each neighbour: its piece, or #id where there is none."""
  if found.by_cosine is None:
    return {}
  ids = {*found.by_cosine.ids.flat, *found.by_distance.ids.flat}
  return {int(i): (vocabulary and vocabulary.piece(int(i))) or f"#{i}"
          for i in ids}


def report(found: Inspection, words: dict[int, str]) -> str:
  """Tables of the positions and of the clusters with several, in markdown."""
  rows = []
  for i, norm in enumerate(found.norms):
    row = {"position": i, "norm": float(norm), "cluster": int(
        found.clusters[i])}
    for title, neighbours in (("by cosine", found.by_cosine),
                              ("by distance", found.by_distance)):
      if neighbours is not None:
        row[title] = ", ".join(
            f"{_cell(words[int(n)])} {value:.3g}" for n, value in zip(
                neighbours.ids[i], neighbours.values[i]))
    rows.append(row)
  text = comparison.markdown(rows) + "\n" + _summary(found) + "\n"
  groups = [_group(found, words, number)
            for number in range(found.clusters.max() + 1)
            if np.count_nonzero(found.clusters == number) > 1]
  return text + ("\n" + comparison.markdown(groups) if groups else "")


def _cell(piece: str) -> str:
  """A piece that does not end a cell of the table, nor its row."""
  return piece.replace("|", "\\|").replace("\n", "\\n")


def _summary(found: Inspection) -> str:
  count = len(set(found.clusters.tolist()))
  text = (f"{len(found.norms)} positions in {count} clusters; mean norm "
          f"{found.norms.mean():.5g}")
  if found.table_norm is None:
    return text
  return text + (
      f", of the embeddings {found.table_norm:.5g}; mean cosine with the "
      f"nearest piece {found.by_cosine.values[:, 0].mean():.3g}")


def _group(found: Inspection, words: dict[int, str], number: int) -> dict:
  """A cluster: its positions, their mean cosine, and their nearest pieces."""
  members = np.flatnonzero(found.clusters == number)
  inside = found.similarity[np.ix_(members, members)]
  count = len(members)
  row = {
      "cluster": number, "positions": " ".join(map(str, members)),
      "mean cosine": float(
          (inside.sum() - np.trace(inside)) / (count * (count - 1)))}
  if found.by_cosine is not None:
    nearest_ids = found.by_cosine.ids[members, 0].tolist()
    row["nearest"] = ", ".join(
        _cell(words[i]) for i in dict.fromkeys(nearest_ids))
  return row


# ------------------------------------------------------------------ picture


def draw(path: str | os.PathLike, found: Inspection) -> None:
  """Draws cosines between positions, cluster by cluster, and the norms."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10.4, 4.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
  order = np.argsort(found.clusters, kind="stable")
  image = left.imshow(
      found.similarity[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r",
      interpolation="nearest")
  _ticks(left, order)
  _title(left, "Cosine of positions, by cluster")
  figure.colorbar(image, ax=left, shrink=0.8).ax.tick_params(labelsize=8)
  _draw_norms(right, found)
  picture = io.BytesIO()
  figure.savefig(picture, format="png")
  formats.write_whole(path, picture.getvalue())


def _ticks(axis, order: Sequence[int]) -> None:
  """Names at most 20 positions; more would run into each other."""
  at = range(0, len(order), -(-len(order) // 20))
  labels = [str(order[i]) for i in at]
  axis.set_xticks(at, labels, fontsize=6, rotation=90)
  axis.set_yticks(at, labels, fontsize=6)


def _draw_norms(axis, found: Inspection) -> None:
  from matplotlib import ticker

  axis.bar(range(len(found.norms)), found.norms, color="#0072B2", width=0.8)
  title = "Norm of each position"
  if found.table_norm is not None:
    axis.axhline(found.table_norm, color="#D55E00", linestyle="--")
    title += " (dashed: mean of the embeddings)"
  _title(axis, title)
  axis.set_xlabel("position", fontsize=9)
  axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axis.spines[["top", "right"]].set_visible(False)
  axis.tick_params(labelsize=8)


def _title(axis, text: str) -> None:
  axis.set_title(text, loc="left", fontsize=10, fontweight="bold")


if __name__ == "__main__":
  sys.exit(main())
