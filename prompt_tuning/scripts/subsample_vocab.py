"""Draws rows of a model's embedding table, as a `.npy` file.

    python -m prompt_tuning.scripts.subsample_vocab \\
        --checkpoint_dir t5_1_1_base/checkpoint_1000000 \\
        --output_path sampled.npy --prompt_length 50

A prompt starts from the file by configs/prompts/from_file.gin. With
--word_list, a JSON object of {id: word}, only the rows of its ids are drawn
from: the way to leave out what is no word of the language. A seed gives the
rows that the original draws with it; here they are the embedding table's,
where its default path is a prompt's.
"""

import argparse
import json
import os
import sys

import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.scripts import extract_variable


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.subsample_vocab",
      description=__doc__.split("\n")[0])
  parser.add_argument("--checkpoint_dir", required=True)
  parser.add_argument(
      "--output_path", required=True, help="the .npy file to write")
  parser.add_argument(
      "--embeddings_path", default=base_lib.EMBEDDING,
      help=f"name of the table (default: {base_lib.EMBEDDING})")
  parser.add_argument(
      "--prompt_length", type=int, default=100,
      help="how many rows to draw, with replacement (default: 100)")
  parser.add_argument(
      "--population_size", type=int, default=5000,
      help="draw from this many first rows, the most common pieces; 0 for all "
      "(default: 5000)")
  parser.add_argument(
      "--word_list", default=None, metavar="PATH",
      help="JSON object of {id: word}: draw from these rows alone")
  parser.add_argument("--seed", type=int, default=42)
  parser.add_argument(
      "--restore_dtype", choices=extract_variable.DTYPES, default="float32",
      help="what to round to; the file is in float32 either way")
  flags = parser.parse_args(arguments)
  with errors.reported():
    table = base_lib.read_variable(
        flags.checkpoint_dir, flags.embeddings_path,
        jnp.dtype(flags.restore_dtype))
    if table.ndim != 2:
      raise errors.UserError(
          f"{flags.embeddings_path} has the shape {table.shape}, and a table "
          f"is [V, H]: give --embeddings_path {base_lib.EMBEDDING}.")
    words = read_word_list(flags.word_list) if flags.word_list else None
    chosen = draw(
        len(table), flags.prompt_length, flags.population_size, flags.seed,
        words)
    extract_variable.save(flags.output_path, table[chosen])
    print(f"{flags.output_path}: {len(chosen)} of {len(table)} rows")


def draw(
    rows: int, length: int, population: int = 5000, seed: int = 42,
    words: dict[int, str] | None = None,
) -> np.ndarray:
  """Which rows to take.

  Args:
    rows: V, of the table.
    length: P, how many.
    population: of the first rows, or the first of `words`; 0 or less for all.
    seed: of NumPy's default generator.
    words: the rows that there are to draw from, by id; None for all.

  Returns:
    [P] ids, drawn with replacement.

  Raises:
    UserError: if `length` or `seed` is out of range, or an id of `words`.
  """
  if length < 1 or seed < 0:
    raise errors.UserError(
        f"--prompt_length {length} must be 1 or more, --seed {seed} 0 or "
        "more.")
  known = np.arange(rows) if words is None else np.array(sorted(words))
  if known[-1] >= rows:
    raise errors.UserError(
        f"The word list has the id {known[-1]} and the table {rows} rows: "
        "give the list of this model's vocabulary.")
  size = min(population, len(known)) if population > 0 else len(known)
  return known[np.random.default_rng(seed).choice(size, length)]


def read_word_list(path: str | os.PathLike) -> dict[int, str]:
  """Words by id, from JSON such as {"8": "the", "11": "and"}.

  Raises:
    UserError: if the file cannot be read or is something else.
  """
  try:
    with open(path, encoding="utf-8") as stream:
      content = json.load(stream)
    words = {int(number): word for number, word in content.items()}
    if not words or min(words) < 0:
      raise ValueError("it has no ids" if not words else "an id is negative")
  except OSError as error:
    raise errors.UserError(
        f"cannot read the word list {path}: {error.strerror}; check the path."
    ) from error
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise errors.UserError(
        f"{path} is not a word list ({error}): write a JSON object of "
        '{"id": "word"}.') from error
  return words


if __name__ == "__main__":
  sys.exit(main())
