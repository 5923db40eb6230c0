"""Files of outputs and of the references that they are compared with.

Three layouts are in use:

* "groups", the E2E challenge's: an output a line; the references of each in a
  row of lines, with a blank line between. Without a blank line each line is
  the one reference of an output.
* "lines", of WebNLG, DART and summaries: an output a line; files with a
  reference a line (reference0, reference1, … or test.target), in which a blank
  line means that there is none.
* "ids", of Simon Fraser University's assignment: `id||text` and
  `id||table||reference`, in any order. Its dev.out numbers the tables in
  another order than its dev.txt, from 275 on for 183 of them; where the file of
  tables is given, references are found by the table.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import os
import pathlib

from prompt_tuning import errors
from prompt_tuning.data import files, table_tasks

LAYOUTS = ("groups", "lines", "ids")

Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Scored:
  """Outputs with what they are compared with.

  Attributes:
    outputs: N texts, empty ones among them.
    references: at least one text for each.
  """

  outputs: list[str]
  references: list[list[str]]


def read(
    layout: str, outputs: Path, references: Sequence[Path],
    tables: Path | None = None,
) -> Scored:
  """Reads outputs and their references.

  Args:
    layout: one of `LAYOUTS`, see the module.
    outputs: a file.
    references: files, several in "lines".
    tables: a table a line, of which the ids of outputs are the numbers, from
      0 without blank lines; for "ids" alone. None: references have the ids of
      their outputs.

  Raises:
    UserError: a file that cannot be read or is not in the layout; outputs and
      references whose numbers differ; an output without a reference.
  """
  if len(references) > 1 and layout != "lines":
    raise errors.UserError(
        f"{len(references)} files of references are given, and the layout "
        f"{layout} has all in one; several are for the layout lines")
  if tables is not None and layout != "ids":
    raise errors.UserError(
        f"{tables} are tables by which outputs with ids find their references, "
        f"and the layout is {layout}")
  if layout == "ids":
    return _by_id(outputs, references[0], tables)
  texts = _stripped(outputs)
  found = _groups(references[0]) if layout == "groups" else _columns(
      references)
  for path, several in found.items():
    if len(several) != len(texts):
      raise errors.UserError(
          f"{outputs} has {len(texts):,} outputs and {path} references for "
          f"{len(several):,}: the entries must be the same, in one order")
  merged = [[text for text in of_one if text]
            for of_one in map(_joined, zip(*found.values()))]
  for place, of_one in enumerate(merged, start=1):
    if not of_one:
      raise errors.UserError(
          f"entry {place} has no reference: it is blank in "
          f"{', '.join(map(str, references))}")
  return Scored(texts, merged)


def splits(path: Path, count: int) -> list[str]:
  """Which entries are of categories seen in training, from a file of them.

  Args:
    path: a line for each entry: a category of WebNLG 2017, or "seen" or
      "unseen".
    count: how many entries there are.

  Returns:
    "seen" or "unseen" for each.

  Raises:
    UserError: another number of lines, or a category that is none.
  """
  kinds = {"seen": "seen", "unseen": "unseen",
           **dict.fromkeys(table_tasks.SEEN_CATEGORIES, "seen"),
           **dict.fromkeys(table_tasks.UNSEEN_CATEGORIES, "unseen")}
  names = _stripped(path)
  for number, name in enumerate(names, start=1):
    if name not in kinds:
      near = difflib.get_close_matches(name, kinds, n=1) or ["seen", "unseen"]
      raise errors.UserError(
          f"{path} line {number}: {name[:40]!r} is no category of WebNLG 2017; "
          f"write one, such as {' or '.join(near)}")
  if len(names) != count:
    raise errors.UserError(
        f"{path} has {len(names):,} categories for {count:,} outputs: it needs "
        "a line for each")
  return [kinds[name] for name in names]


def _stripped(path: Path) -> list[str]:
  return [line.strip() for _, line in files.lines(pathlib.Path(path))]


def _groups(path: Path) -> dict[Path, list[list[str]]]:
  lines = _stripped(path)
  while lines and not lines[-1]:
    del lines[-1]
  if "" not in lines:
    return {path: [[line] for line in lines]}
  groups = [[]]
  for number, line in enumerate(lines, start=1):
    if line:
      groups[-1].append(line)
    elif not groups[-1]:
      raise errors.UserError(
          f"{path} line {number} is blank where references of entry "
          f"{len(groups)} should be: one blank line ends those of an entry")
    else:
      groups.append([])
  return {path: groups}


def _columns(paths: Sequence[Path]) -> dict[Path, list[list[str]]]:
  return {path: [[line] for line in _stripped(path)] for path in paths}


def _joined(parts: Sequence[list[str]]) -> list[str]:
  return [text for part in parts for text in part]


def _by_id(outputs: Path, references: Path, tables: Path | None) -> Scored:
  texts, groups = {}, {}
  for number, line in _filled(outputs):
    name, *rest = line.split("||", 1)
    if not rest:
      raise errors.UserError(
          f"{outputs} line {number} has no '||': lines are `id||text`")
    if name in texts:
      raise errors.UserError(
          f"{outputs} line {number} has the id {name!r} for the second time")
    texts[name] = rest[0].strip()
  ids = None if tables is None else {
      line: str(i) for i, (_, line) in enumerate(_filled(tables))}
  for number, line in _filled(references):
    name, *rest = line.split("||", 2)
    if len(rest) != 2 or not rest[1].strip():
      raise errors.UserError(
          f"{references} line {number} is not `id||table||reference`")
    table = rest[0].strip()
    if ids is not None and table not in ids:
      raise errors.UserError(
          f"{references} line {number} has a table that {tables} has not: "
          f"{table[:80]!r}")
    name = name if ids is None else ids[table]
    groups.setdefault(name, []).append(rest[1].strip())
  if texts.keys() != groups.keys():
    odd = next(name for name in (*texts, *groups)
               if name not in texts or name not in groups)
    raise errors.UserError(
        f"{outputs} has {len(texts):,} outputs and {references} references "
        f"for {len(groups):,}: the id {odd!r} is in one of them only")
  return Scored(list(texts.values()), [groups[name] for name in texts])


def _filled(path: Path):
  return ((number, line.strip()) for number, line in files.lines(
      pathlib.Path(path)) if line.strip())
