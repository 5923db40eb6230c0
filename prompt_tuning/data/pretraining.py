"""Pretraining tasks on docstrings: span corruption, then language modelling.

Both are cut from the same pages, those of the modules in the split
"pretrain". Half of the pages have their heading in front, half below, so that
the model learns both to write a docstring for a name and to name the place
that a docstring comes from.
"""

from collections.abc import Iterator
import hashlib

import numpy as np

from prompt_tuning import pretrained
from prompt_tuning.data import docstrings, tasks

# Ids of one piece of text. Docstring sentences have about 30.
CHUNK = 96
# Share of span-corrupted ids and their mean run, as T5 (Raffel et al. 2020,
# section 3.3.4).
NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0


def span_corrupted(
    ids: np.ndarray, rng: np.random.Generator, vocab_size: int
) -> tuple[list[int], list[int]]:
  """Replaces random spans by sentinels; the targets are what is missing.

  Args:
    ids: [T] at least 4 of them.
    rng: draws the spans.
    vocab_size: sentinel i is vocab_size - 1 - i.

  Returns:
    Inputs and targets, both without end-of-sequence.
  """
  length = len(ids)
  noise = int(np.clip(round(length * NOISE_DENSITY), 1, length - 1))
  spans = max(1, min(round(noise / MEAN_SPAN), length - noise))
  noise_runs = _segments(noise, spans, rng)
  text_runs = _segments(length - noise, spans, rng)
  inputs, targets, at = [], [], 0
  for number, (text, hidden) in enumerate(zip(text_runs, noise_runs)):
    sentinel = vocab_size - 1 - number
    inputs += [*ids[at:at + text], sentinel]
    targets += [sentinel, *ids[at + text:at + text + hidden]]
    at += text + hidden
  return [int(i) for i in inputs], [int(i) for i in targets]


def _segments(total: int, count: int, rng) -> np.ndarray:
  """Cuts `total` into `count` positive lengths, all cuts equally likely."""
  cuts = np.sort(rng.permutation(total - 1)[:count - 1]) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))


def _pages(split: str, vocabulary):
  """(heading, body) ids of every documented name, in an order by hash."""
  found = {}
  for package in docstrings.PACKAGES:
    for entry in docstrings.entries(package, split):
      body = f"{entry.signature}\n{entry.text}".strip()
      found.setdefault(body, docstrings.heading(entry))
  order = sorted(
      found, key=lambda body: hashlib.sha256(body.encode()).digest())
  for body in order:
    yield (np.array(vocabulary.encode(found[body]), np.int32),
           np.array(vocabulary.encode(body), np.int32))


def _chunks(ids: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(ids), CHUNK):
    if len(ids) - start >= 8:
      yield ids[start:start + CHUNK]


def span_corruption_examples(split: str, epochs: int = 2) -> Iterator[dict]:
  """Every page `epochs` times, corrupted anew each time."""
  vocabulary = pretrained.vocabulary()
  rng = np.random.default_rng(0)
  pages = list(_pages(split, vocabulary))
  for _ in range(epochs):
    for heading, body in pages:
      first = [body, heading] if rng.random() < 0.5 else [heading, body]
      for chunk in _chunks(np.concatenate(first)):
        inputs, targets = span_corrupted(chunk, rng, vocabulary.vocab_size)
        yield {"inputs": inputs, "targets": targets}


def language_model_examples(split: str, epochs: int = 2) -> Iterator[dict]:
  """Prefixes and their continuations (Lester et al. 2021, section 3.3).

  Half of the pages are cut into pieces, each split at a random place. The
  other half is a passage of the text, of random length, and the heading that
  follows it.
  """
  vocabulary = pretrained.vocabulary()
  rng = np.random.default_rng(1)
  pages = list(_pages(split, vocabulary))
  for _ in range(epochs):
    for heading, body in pages:
      if rng.random() < 0.5:
        for chunk in _chunks(np.concatenate([heading, body])):
          cut = int(rng.integers(1, len(chunk)))
          yield {"inputs": chunk[:cut].tolist(),
                 "targets": chunk[cut:].tolist()}
      else:
        for passage in _passages(body, rng):
          yield {"inputs": passage.tolist(), "targets": heading.tolist()}


def _passages(body: np.ndarray, rng) -> Iterator[np.ndarray]:
  at = 0
  while len(body) - at >= 8:
    length = int(rng.integers(12, 64))
    yield body[at:at + length]
    at += length


def docstring_span_corruption() -> tasks.Task:
  """The task `docstring_span_corruption`."""
  return _task("docstring_span_corruption", span_corruption_examples)


def docstring_language_model() -> tasks.Task:
  """The task `docstring_language_model`."""
  return _task("docstring_language_model", language_model_examples)


def _task(name: str, examples) -> tasks.Task:
  return tasks.Task(
      name=name, splits=("train", "validation"),
      # What tasks call "train" is the split that they themselves never see.
      examples=lambda split: examples(
          "pretrain" if split == "train" else split,
          **({} if split == "train" else {"epochs": 1})),
      fingerprint=docstrings.fingerprint(
          name, docstrings.PACKAGES, pretrained.vocabulary().fingerprint))
