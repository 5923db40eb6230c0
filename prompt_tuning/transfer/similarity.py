"""How near tasks are to each other, told by their prompts alone.

SPoT (Vu et al. 2022, arXiv 2110.07904) starts the prompt of a task from that of
another one. Which other one helps can be read off the prompts (sections 4.1 and
4.2): a prompt that was trained for a few thousand steps is an embedding of its
task, and tasks whose embeddings have a high cosine transfer best. The prompts
must be of one base model, and trained alike.

What to do with the nearest k (section 4.3): train from each and keep the best
result (runs/prompt_sweep_from_files.gin), or train once from their
`weighted_average`.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import os

import numpy as np

from prompt_tuning import errors, formats
from prompt_tuning.formats import card, peft, prompt_file

# ----------------------------------------------------------------- similarity


def task_embedding(prompt: np.ndarray) -> np.ndarray:
  """The mean of a prompt's positions: [P, H] -> [H]."""
  return np.mean(prompt, axis=0, dtype=np.float64)


def cosine_of_averages(one: np.ndarray, other: np.ndarray) -> float:
  """The cosine of two prompts' `task_embedding`; lengths may differ."""
  return float(_unit(task_embedding(one)) @ _unit(task_embedding(other)))


def cosine_per_token(one: np.ndarray, other: np.ndarray) -> float:
  """The mean cosine over all pairs of positions; lengths may differ."""
  # The mean over pairs of a product is the product of the means.
  return float(_unit(one).mean(axis=0) @ _unit(other).mean(axis=0))


def cosine_flattened(one: np.ndarray, other: np.ndarray) -> float:
  """The cosine of two prompts as vectors of P * H numbers.

  It compares position by position, so it suits prompts that began as one.

  Raises:
    UserError: if their lengths differ.
  """
  if len(one) != len(other):
    raise errors.UserError(
        f"Prompts of {len(one)} and of {len(other)} positions have no cosine "
        "position by position: compare them with the metric 'average'.")
  return float(_unit(one.reshape(-1)) @ _unit(other.reshape(-1)))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "average": cosine_of_averages, "per_token": cosine_per_token,
    "flattened": cosine_flattened}


def _unit(vectors: np.ndarray) -> np.ndarray:
  """Vectors [..., H] of length 1; those of length 0 stay."""
  vectors = np.asarray(vectors, np.float64)
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.where(length > 0, length, 1.0)


def similarities(
    prompts: Sequence[np.ndarray], metric: str = "average"
) -> np.ndarray:
  """Every prompt with every other: [N, N], by a name in `METRICS`."""
  compare = METRICS[metric]
  found = np.empty((len(prompts), len(prompts)))
  for i, one in enumerate(prompts):
    for j, other in enumerate(prompts[:i + 1]):
      found[i, j] = found[j, i] = compare(one, other)
  return found


def nearest(
    target: np.ndarray, sources: Mapping[str, np.ndarray], count: int,
    metric: str = "average",
) -> list[tuple[str, float]]:
  """The most similar prompts to start a task from, the best one first.

  Args:
    target: [P, H] of the task.
    sources: prompts of other tasks, by name.
    count: how many to give.
    metric: a name in `METRICS`.

  Returns:
    Names and similarities.
  """
  found = [(name, METRICS[metric](target, source))
           for name, source in sources.items()]
  return sorted(found, key=lambda pair: -pair[1])[:count]


def weights(similarities: Mapping[str, float]) -> dict[str, float]:
  """What each source counts in an average: its share of all similarities.

  Raises:
    UserError: if a similarity is not above 0, which has no share.
  """
  for name, value in similarities.items():
    if not value > 0:
      raise errors.UserError(
          f"{name} has the similarity {value:.3f} to the target, and only one "
          "above 0 has a weight: average fewer prompts.")
  total = sum(similarities.values())
  return {name: value / total for name, value in similarities.items()}


def weighted_average(
    prompts: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> np.ndarray:
  """A start for a task, out of the prompts of several others.

  Args:
    prompts: [P, H] each, by name.
    weights: of some of them, by name; they add up to 1.

  Returns:
    [P, H] in float32, summed in float64.

  Raises:
    UserError: if their lengths differ.
  """
  lengths = {name: len(prompts[name]) for name in weights}
  if len(set(lengths.values())) > 1:
    raise errors.UserError(
        "Prompts of different lengths have no average "
        f"({', '.join(f'{n}: {k}' for n, k in lengths.items())}): average "
        "prompts of one length.")
  return np.float32(sum(
      weight * np.asarray(prompts[name], np.float64)
      for name, weight in weights.items()))


# ---------------------------------------------------------- a folder of prompts


def find(folder: str | os.PathLike) -> list[str]:
  """Paths of all prompts below a folder, in the order of their names.

  Those are `.npy` files, files of the original's exports
  (`encoder.prompt.prompt.prompt`), and folders of PEFT adapters. Hidden ones
  are passed over.

  Raises:
    UserError: if there is no such folder, or no prompt in it.
  """
  if not os.path.isdir(folder):
    raise errors.UserError(
        f"{os.fspath(folder)!r} is not a folder: name one with prompts.")
  found = []
  for parent, folders, files in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith(".")]
    if peft.is_adapter(parent):
      found.append(parent)
    found += [
        os.path.join(parent, name) for name in files
        if name.endswith((".npy", ".prompt")) and not name.startswith(".")]
  if not found:
    raise errors.UserError(
        f"{os.fspath(folder)!r} holds no prompt, neither a .npy file nor a "
        "PEFT adapter: name a folder that does.")
  return sorted(found)


def read_all(paths: Sequence[str]) -> list[np.ndarray]:
  """The prompts of some files, which must belong to one base model.

  Raises:
    UserError: if one is no prompt, or their widths or the base models on their
      cards differ.
  """
  prompts = [prompt_file.read(path) for path in paths]
  for path, prompt in zip(paths, prompts):
    if prompt.shape[1] != prompts[0].shape[1]:
      raise errors.UserError(
          f"{path} has width {prompt.shape[1]} and {paths[0]} "
          f"{prompts[0].shape[1]}, so they are of different base models and "
          "cannot be compared: keep prompts of one model in one folder.")
  cards = read_cards(paths)
  for path, this in cards.items():
    first = next(iter(cards))
    if this.base_fingerprint != cards[first].base_fingerprint:
      raise errors.UserError(
          f"{path} was trained on {this.base_model!r} and {first} on "
          f"{cards[first].base_model!r}, whose embeddings differ, so they "
          "cannot be compared: keep prompts of one model in one folder.")
  return prompts


def read_cards(paths: Sequence[str]) -> dict[str, card.Card]:
  """The cards of those prompts that have one, by their paths."""
  return {path: card.read_card(card.card_path(path)) for path in paths
          if os.path.isfile(card.card_path(path))}


# -------------------------------------------------------------------- picture


def draw(
    path: str | os.PathLike, names: Sequence[str], found: np.ndarray,
    title: str,
) -> None:
  """Draws similarities [N, N] as a heat map, a PNG file.

  Raises:
    UserError: if it cannot be written.
  """
  # The canvas without pyplot: no window system, and no state left behind.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  count = len(names)
  side = 2.2 + 0.34 * count
  figure = Figure(figsize=(side + 1.2, side), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axis = figure.subplots()
  image = axis.imshow(
      found, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
  axis.set_xticks(range(count), names, rotation=90, fontsize=7)
  axis.set_yticks(range(count), names, fontsize=7)
  if count <= 20:  # more would not be legible
    for i, j in np.ndindex(count, count):
      axis.text(
          j, i, f"{found[i, j]:.2f}", ha="center", va="center", fontsize=5,
          color="white" if abs(found[i, j]) > 0.7 else "black")
  axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
  figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
  picture = io.BytesIO()
  figure.savefig(picture, format="png")
  formats.write_whole(path, picture.getvalue())
