"""The seqio task of `benchmark_t5x`: words of a vocabulary at random."""

import json
import os
import pathlib

import seqio

FOLDER = pathlib.Path(os.environ["PROMPT_TUNING_BENCHMARK"])


def _examples(split, shuffle_files=False, seed=None):
  import tensorflow as tf

  del split, shuffle_files, seed
  rows = [json.loads(line) for line in
          (FOLDER / "train.jsonl").read_text().splitlines()]
  return tf.data.Dataset.from_tensor_slices(
      {name: [row[name] for row in rows] for name in rows[0]})


seqio.TaskRegistry.add(
    "benchmark_random_words",
    source=seqio.FunctionDataSource(_examples, splits=("train",)),
    preprocessors=[
        seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
        name: seqio.Feature(seqio.SentencePieceVocabulary(
            str(FOLDER / "vocabulary.model"), extra_ids=100), add_eos=True)
        for name in ("inputs", "targets")})
