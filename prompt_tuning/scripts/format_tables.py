"""Brings the public files of E2E, WebNLG and DART into the tasks' layout.

    python -m prompt_tuning.scripts.format_tables --dataset webnlg \\
        --train train.json --dev dev.json --test test.json --folder webnlg

Makes train_formatted.jsonl, dev_formatted.jsonl and test_formatted.jsonl (see
`prompt_tuning.data.table_tasks`). E2E's files have lines `table||text`, those
of WebNLG 2017 and DART are JSON; each may be compressed (`.gz`).

WebNLG's triples are put in a row as LoRA's authors do it. For
runs/prefix_webnlg.gin they are read as its authors did, training data with
`--webnlg_style prefix_tuning` and, with a slip of theirs in the first entry,
what is decoded with `--webnlg_style prefix_tuning_decoding`.
"""

import argparse
import gzip
import json
import os
import sys

from prompt_tuning import errors, formats
from prompt_tuning.data import table_tasks
from prompt_tuning.train import setup

_READERS = {
    "e2e": lambda text, style: table_tasks.e2e_rows(text.splitlines()),
    "webnlg": lambda text, style: table_tasks.webnlg_rows(
        json.loads(text), style),
    "dart": lambda text, style: table_tasks.dart_rows(json.loads(text)),
}
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.format_tables",
      description=__doc__.split("\n")[0])
  parser.add_argument("--dataset", required=True, choices=list(_READERS))
  for split in _SPLITS:
    parser.add_argument(f"--{split}", metavar="FILE", help="the public file")
  parser.add_argument("--folder", required=True, help="where results go")
  parser.add_argument(
      "--webnlg_style", choices=table_tasks.WEBNLG_STYLES,
      help="whose way of putting WebNLG's triples in a row, see "
      "table_tasks.webnlg_rows (default: lora)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    if flags.webnlg_style and flags.dataset != "webnlg":
      raise errors.UserError(
          "--webnlg_style is for --dataset webnlg: leave it out, the others "
          "are read in one way")
    given = {split: getattr(flags, split) for split in _SPLITS}
    if not any(given.values()):
      raise errors.UserError(
          "No file is given: name at least one of --train, --dev and --test.")
    folder = setup.make_folder(flags.folder, "--folder")
    for split, path in given.items():
      if path:
        rows = read(flags.dataset, path, flags.webnlg_style or "lora")
        target = os.path.join(folder, table_tasks.FILES[_SPLITS[split]])
        formats.write_whole(target, "".join(
            json.dumps(row, ensure_ascii=False) + "\n"
            for row in rows).encode())
        contexts = len(table_tasks.grouped(rows))
        print(f"{len(rows):,} rows of {contexts:,} contexts: {target}")


def read(
    dataset: str, path: str, webnlg_style: str = "lora"
) -> list[table_tasks.Row]:
  """The rows of a public file.

  Args:
    dataset: "e2e", "webnlg" or "dart".
    path: the file, compressed if its name ends in `.gz`.
    webnlg_style: see `table_tasks.webnlg_rows`.

  Raises:
    UserError: if it cannot be read, or is another dataset's.
  """
  try:
    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(
        ".gz") else open(path, encoding="utf-8") as file:
      text = file.read()
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise errors.UserError(f"cannot read {path}: {error}") from error
  try:
    rows = list(_READERS[dataset](text, webnlg_style))
  except errors.UserError as error:
    raise errors.UserError(f"{path}: {error}") from error
  except (json.JSONDecodeError, KeyError, TypeError, ValueError,
          AttributeError, RecursionError) as error:
    raise errors.UserError(
        f"{path} is not a file of {dataset} ({type(error).__name__}: {error}): "
        "give the public one, or another --dataset") from error
  if not rows:
    raise errors.UserError(f"{path} has no rows")
  return rows


if __name__ == "__main__":
  sys.exit(main())
