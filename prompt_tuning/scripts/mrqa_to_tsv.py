"""Makes a TSV file of a dataset of the MRQA 2019 shared task.

    python -m prompt_tuning.scripts.mrqa_to_tsv --jsonl BioASQ.jsonl.gz

A row a question: id, context, question, answer (to train on) and answers (all
that count as right, joined by --delim); every run of white space becomes one
space. The original kept the first question of each context only.
"""

import argparse
from collections.abc import Iterator
import csv
import gzip
import io
import json
import os
import re
import sys
import zlib

from prompt_tuning import errors, formats

COLUMNS = ("id", "context", "question", "answer", "answers")


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.mrqa_to_tsv",
      description=__doc__.split("\n")[0])
  parser.add_argument(
      "--jsonl", "--json", required=True, metavar="PATH",
      help="the dataset, a JSON object a line; may be gzipped (.gz)")
  parser.add_argument(
      "--header", type=int, default=1, help="lines to skip (default: 1)")
  parser.add_argument(
      "--delim", default="|||", help="between answers (default: |||)")
  parser.add_argument(
      "--output", default=None, metavar="PATH",
      help="the TSV file (default: the dataset's name with .tsv)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    output = flags.output or default_output(flags.jsonl)
    count = convert(flags.jsonl, output, flags.header, flags.delim)
    print(f"{output}: {count} questions")


def default_output(path: str) -> str:
  """`BioASQ.jsonl.gz` -> `BioASQ.tsv`."""
  return os.path.splitext(path.removesuffix(".gz"))[0] + ".tsv"


def convert(
    path: str | os.PathLike, output: str | os.PathLike, header: int = 1,
    delim: str = "|||",
) -> int:
  """Reads a dataset and writes its questions, all or nothing.

  Args:
    path: the dataset.
    output: the file to write.
    header: how many lines in front are no example.
    delim: what stands between the answers; no answer may hold it.

  Returns:
    How many questions there are.

  Raises:
    UserError: if a line is not as the shared task has it.
  """
  if header < 0:
    raise errors.UserError(f"--header {header} must be 0 or more.")
  text = io.StringIO()
  writer = csv.DictWriter(
      text, COLUMNS, delimiter="\t", lineterminator="\n")
  writer.writeheader()
  count = 0
  for number, line in _lines(os.fspath(path)):
    if number <= header or not line.strip():
      continue
    for row in _understood(line, delim, f"{path} line {number}"):
      writer.writerow(row)
      count += 1
  if not count:
    raise errors.UserError(
        f"{path} has no questions behind its {header} lines of header: check "
        "--jsonl and --header.")
  formats.write_whole(output, text.getvalue().encode())
  return count


def rows(example: dict, delim: str = "|||") -> Iterator[dict[str, str]]:
  """The rows of one context: `{"context": …, "qas": [{"qid": …}, …]}`.

  The answer to train on is the first that was found in the context; where
  none was, the first of those that count.
  """
  context = _plain(example["context"])
  for asked in example["qas"]:
    answers = [_plain(answer) for answer in asked["answers"]]
    found = [_plain(a["text"]) for a in asked.get("detected_answers") or ()]
    if not found + answers:
      raise ValueError(f"question {asked['qid']!r} has no answer")
    if any(delim in answer for answer in answers):
      raise ValueError(
          f"an answer to {asked['qid']!r} holds the delimiter {delim!r}")
    yield {
        "id": asked["qid"], "context": context,
        "question": _plain(asked["question"]),
        "answer": (found + answers)[0], "answers": delim.join(answers)}


def _plain(text: str) -> str:
  """On one line, each run of white space a single space."""
  return re.sub(r"\s+", " ", text)


def _lines(path: str) -> Iterator[tuple[int, str]]:
  read = gzip.open if path.endswith(".gz") else open
  try:
    with read(path, "rt", encoding="utf-8") as stream:
      yield from enumerate(stream, 1)
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise errors.UserError(
        f"cannot read {path} ({getattr(error, 'strerror', None) or error}): "
        "give the .jsonl or .jsonl.gz file of the shared task.") from error


def _understood(line: str, delim: str, place: str) -> list[dict[str, str]]:
  try:
    return list(rows(json.loads(line), delim))
  except (ValueError, TypeError, LookupError, AttributeError,
          RecursionError) as error:
    reason = (f"it has no {error}" if isinstance(error, KeyError)
              else " ".join(str(error).split())[:200])
    raise errors.UserError(
        f"{place} is not an example of MRQA ({reason}): give the .jsonl file "
        "of the shared task, and the lines in front of the examples by "
        "--header, their delimiter by --delim.") from error


if __name__ == "__main__":
  sys.exit(main())
