"""Carries a prompt over to another model with the same vocabulary.

    python -m prompt_tuning.scripts.recycle \\
        --source_model t5_1_1_base/checkpoint_1100000 \\
        --target_model t5_1_1_large/checkpoint_1100000 \\
        --prompt_path sst2.npy --output_path sst2_large.npy \\
        --filtered_word filtered-vocab-english-only.json

The models are checkpoints of any kind that training starts from, the prompt is
a .npy file, a PEFT adapter's folder or a T5X checkpoint. A map is learned from
the embeddings of words that both models have (`transfer.recycling`; Lester et
al. 2022, arXiv 2208.05577); the output gets a card of the target model.
"""

import argparse
import sys

import numpy as np

from prompt_tuning import errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import card, prompt_file
from prompt_tuning.transfer import recycling


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.recycle",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--source_model", required=True, metavar="PATH",
      help="the model that the prompt was trained with")
  parser.add_argument(
      "--target_model", required=True, metavar="PATH",
      help="the model to have a prompt for")
  parser.add_argument("--prompt_path", required=True, metavar="PATH")
  parser.add_argument("--output_path", required=True, metavar="NPY")
  parser.add_argument(
      "--filtered_word", default=None, metavar="JSON",
      help="ids and pieces to learn from, as the original's "
      "filtered-vocab-english-only.json (default: the whole vocabulary)")
  parser.add_argument(
      "--num_words", type=int, default=4000,
      help="how many words to learn from (default: 4000)")
  parser.add_argument(
      "--word_offset", type=int, default=1000,
      help="how many words to skip before them (default: 1000)")
  parser.add_argument(
      "--recycler", choices=recycling.RECYCLERS, default="v2v-nn")
  network = parser.add_argument_group("v2v-nn alone")
  network.add_argument("--hidden_scale", type=int, default=4)
  network.add_argument("--batch_size", type=int, default=50)
  network.add_argument("--learning_rate", type=float, default=3e-4)
  network.add_argument("--epochs", type=int, default=25)
  flags = parser.parse_args(arguments)
  options = {name: getattr(flags, name) for name in (
      "hidden_scale", "batch_size", "learning_rate", "epochs")}
  with errors.reported():
    for name, value in options.items():
      if not value > 0:
        raise errors.UserError(f"--{name} is {value}: it must be above 0.")
    print(recycle(
        flags.source_model, flags.target_model, flags.prompt_path,
        flags.output_path, flags.filtered_word, flags.num_words,
        flags.word_offset, flags.recycler,
        **options if flags.recycler == "v2v-nn" else {}))


def recycle(
    source_model: str, target_model: str, prompt_path: str, output_path: str,
    filtered_word: str | None = None, num_words: int = 4000,
    word_offset: int = 1000, recycler: str = "v2v-nn", **options,
) -> str:
  """Recycles one prompt and writes it with its card.

  Args:
    source_model: see `checkpoints.base.open_base`.
    target_model: the same.
    prompt_path: see `formats.prompt_file`; its card, if it has one, must name
      the source model.
    output_path: a .npy file, made or replaced.
    filtered_word: see `recycling.read_words`.
    num_words: see `recycling.support`.
    word_offset: the same.
    recycler: one of `recycling.RECYCLERS`.
    **options: of `recycling.fit`.

  Returns:
    A sentence about what was done.

  Raises:
    UserError: if something is not there, or does not belong together.
  """
  prompt = prompt_file.read(prompt_path)
  words = recycling.read_words(filtered_word) if filtered_word else None
  source, _ = _table(source_model)
  known = card.check(prompt_path, card.fingerprint(source), source_model)
  if prompt.shape[1] != source.shape[1]:
    raise errors.UserError(
        f"{prompt_path} has width {prompt.shape[1]} and {source_model} "
        f"{source.shape[1]}: give the model that the prompt was trained with.")
  target, target_name = _table(target_model)
  if words is None and len(source) != len(target):
    raise errors.UserError(
        f"{source_model} has {len(source):,} embeddings and {target_model} "
        f"{len(target):,}: recycling needs one vocabulary; if it is one, name "
        "the words that both have with --filtered_word.")
  carried, left = recycling.recycle(
      prompt,
      recycling.support(source, source_model, words, num_words, word_offset),
      recycling.support(target, target_model, words, num_words, word_offset),
      recycler, **options)
  recycling.write(
      output_path, carried, prompt_path, known,
      recycling.model_name(source_model), target_name,
      card.fingerprint(target),
      {"recycler": recycler, "num_words": num_words,
       "word_offset": word_offset} | options)
  return (
      f"{output_path}: {carried.shape[0]} x {carried.shape[1]}, for "
      f"{target_name}; the map leaves {left:.2%} of the variance of "
      f"{num_words:,} words")


def _table(path: str) -> tuple[np.ndarray, str]:
  return (base_lib.read_embedding_table(path, np.float32),
          recycling.model_name(path))


if __name__ == "__main__":
  sys.exit(main())
