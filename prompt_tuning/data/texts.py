"""How T5 puts rows of datasets into texts, character by character.

Functions of one row, as plain Python values, that give one example or several;
formats are those of Raffel et al. 2020, appendix D.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import re
from typing import Any

import numpy as np

Row = dict[str, Any]
Example = dict[str, Any]
Step = Callable[[Iterator[Any]], Iterator[Any]]

# What T5 writes for a label that is not public (GLUE's test splits).
UNKNOWN = "<unk>"

# White space and punctuation of ASCII alone, as the original's expressions.
_SPACES = re.compile(r"[\t\n\f\r ]+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def each(function: Callable[..., Example], **settings) -> Step:
  """A step that makes one example of every row."""
  return functools.partial(map, functools.partial(function, **settings))


def flat(function: Callable[..., Iterable[Example]], **settings) -> Step:
  """A step that makes any number of examples of every row."""
  made = functools.partial(function, **settings)
  return lambda rows: (example for row in rows for example in made(row))


def without_first_word(examples: Iterator[Example]) -> Iterator[Example]:
  """A step that takes the task's name off the inputs."""
  for example in examples:
    text = example["inputs"]
    yield {**example, "inputs": text.partition(" ")[2] if " " in text else text}


def label_text(label: int, labels: Sequence[str]) -> str:
  """The text of a class; -1 is a label that is not public."""
  return UNKNOWN if label == -1 else labels[label]


def classification(
    row: Row, name: str, keys: Sequence[str], labels: Sequence[str],
) -> Example:
  """"mrpc sentence1: … sentence2: …"; the index is kept for metrics.

  Args:
    row: has `keys`, `label` (a class, -1 if not public) and `idx`.
    name: in front of the text.
    keys: the columns of the text, in order.
    labels: the texts of the classes.
  """
  parts = [part for key in keys for part in (f"{key}:", row[key])]
  return {"inputs": " ".join([name, *parts]),
          "targets": label_text(row["label"], labels), "idx": row["idx"]}


def similarity(row: Row) -> Example:
  """STS-B: the score is rounded to fifths, half to even, in float32."""
  score = np.rint(np.float32(row["label"]) * np.float32(5)) / np.float32(5)
  return {"inputs": f"stsb sentence1: {row['sentence1']} "
                    f"sentence2: {row['sentence2']}",
          "targets": f"{score:.1f}", "idx": row["idx"]}


def with_spaced_punctuation(text: str) -> str:
  """Spaces around punctuation; runs of white space are one space."""
  return one_spaced(_PUNCTUATION.sub(r" \1 ", text))


def one_spaced(text: str) -> str:
  """Runs of white space as one space each."""
  return _SPACES.sub(" ", text)


def question(
    row: Row, answers: Sequence[str], name: str | None = None) -> Example:
  """"question: … context: …", the first answer; all are kept for metrics."""
  asked = with_spaced_punctuation(row["question"])
  context = with_spaced_punctuation(row["context"])
  answers = [with_spaced_punctuation(answer) for answer in answers]
  words = ["question:", asked, "context:", context]
  return {"inputs": one_spaced(" ".join([name, *words] if name else words)),
          "targets": answers[0], "question": asked, "context": context,
          "answers": answers}


def generation(
    row: Row, source: str, target: str, prefix: str = "summarize:",
) -> Example:
  """"summarize: …" and what is to be written."""
  return {"inputs": f"{prefix} {row[source]}", "targets": row[target]}


def ranked(
    candidates: Callable[[Example], tuple[Sequence[str], Sequence[str]]],
) -> Step:
  """A step that makes an example of every text that may be the target.

  Args:
    candidates: an example's possible targets, and those that are right.

  Returns:
    A step; what it yields has `idx`, [example, candidate], and `is_correct`.
  """
  def step(examples: Iterator[Example]) -> Iterator[Example]:
    for number, example in enumerate(examples):
      texts, right = candidates(example)
      for place, text in enumerate(texts):
        yield {"inputs": example["inputs"], "targets": text,
               "idx": [number, place], "is_correct": text in right}
  return step


def among(labels: Sequence[str]) -> Step:
  """`ranked` where every example has the same possible targets."""
  return ranked(lambda example: (labels, [example["targets"]]))
