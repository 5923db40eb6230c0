"""A seqio task of 32 and 8 sentences of SST-2, for T5X to train on."""

import os
import pathlib

import seqio

DATA = pathlib.Path(os.environ["SHARED_DATA"])
VOCABULARY = seqio.SentencePieceVocabulary(
    str(DATA / "t5x" / "t5_vocab"), extra_ids=100)


def _texts(split, shuffle_files=False, seed=None):
  import tensorflow as tf

  del shuffle_files, seed
  name, count = {"train": ("train", 32), "validation": ("dev", 8)}[split]
  lines = (DATA / "sst2" / f"{name}.tsv").read_text().splitlines()[:count]
  texts, labels = zip(*(line.split("\t") for line in lines))
  return tf.data.Dataset.from_tensor_slices({
      "inputs": [f"sst2 sentence: {text}" for text in texts],
      "targets": [("negative", "positive")[int(label)] for label in labels]})


def accuracy(targets, predictions):
  """How many texts are the very same."""
  return {"accuracy": sum(map(str.__eq__, targets, predictions))}


seqio.TaskRegistry.add(
    "sst2_sentences",
    source=seqio.FunctionDataSource(
        _texts, splits=("train", "validation"),
        num_input_examples={"train": 32, "validation": 8}),
    preprocessors=[
        seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
        name: seqio.Feature(VOCABULARY, add_eos=True)
        for name in ("inputs", "targets")},
    metric_fns=[accuracy])
