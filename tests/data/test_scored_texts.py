"""The three layouts of outputs and references, and what does not fit."""

import gzip

import pytest

from prompt_tuning import errors
from prompt_tuning.data import scored_texts


@pytest.fixture
def files(tmp_path):
  """Writes files by name, and gives their paths."""

  def write(**texts):
    paths = []
    for name, text in texts.items():
      paths.append(tmp_path / name)
      paths[-1].write_text(text, encoding="utf-8", newline="")
    return paths

  return write


def test_groups(files):
  outputs, references = files(
      out="one \r\n\ntwo", ref="a\n b \n\nc\n\nd\ne\n\n\n")
  assert scored_texts.read("groups", outputs, [references]) == (
      scored_texts.Scored(["one", "", "two"], [["a", "b"], ["c"], ["d", "e"]]))


def test_groups_of_one_without_blank_lines(files):
  outputs, references = files(out="one\ntwo\n", ref="a\nb\n")
  assert scored_texts.read("groups", outputs, [references]).references == [
      ["a"], ["b"]]


def test_lines_of_several_files(files):
  outputs, *references = files(
      out="one\ntwo\n", ref0="a\nb\n", ref1="c\n\n", ref2="\nd\n")
  assert scored_texts.read("lines", outputs, references).references == [
      ["a", "c"], ["b", "d"]]


def test_ids_in_another_order(files, tmp_path):
  outputs, references = files(
      out="7||x || y\n3||\n", ref="3||t : u||a\n7||t||b||c\n\n3||t : u||d\n")
  compressed = tmp_path / "ref.gz"
  compressed.write_bytes(gzip.compress(references.read_bytes()))
  for path in (references, compressed):
    assert scored_texts.read("ids", outputs, [path]) == scored_texts.Scored(
        ["x || y", ""], [["b||c"], ["a", "d"]])


@pytest.mark.parametrize("layout, out, refs, sentence", [
    ("groups", "a\nb\n", ["c\n\nd\n\ne\n"],
     "has 2 outputs and .*ref0 references for 3"),
    ("groups", "a\nb\n", ["c\n\n\nd\n"],
     "ref0 line 3 is blank where references of entry 2 should be"),
    ("groups", "a\n", ["\nc\n"], "line 1 is blank where references of entry 1"),
    ("groups", "a\n", ["c\n", "d\n"], "2 files of references are given"),
    ("lines", "a\nb\n", ["c\nd\n", "e\n"],
     "has 2 outputs and .*ref1 references for 1"),
    ("lines", "a\nb\n", ["c\n\n", "e\n\n"], "entry 2 has no reference: .*ref1"),
    ("ids", "0||a\n1|b\n", ["0||t||c\n"], r"out line 2 has no '\|\|'"),
    ("ids", "0||a\n\n0||b\n", ["0||t||c\n"], "line 3 has the id '0' for the"),
    ("ids", "0||a\n", ["0||c\n"], "ref0 line 1 is not `id"),
    ("ids", "0||a\n", ["0||t||  \n"], "ref0 line 1 is not `id"),
    ("ids", "0||a\n1||b\n", ["0||t||c\n"],
     "has 2 outputs and .*ref0 references for 1: the id '1' is in one"),
    ("lines", "", ["c\n"], "out is empty"),
])
def test_what_does_not_fit(files, layout, out, refs, sentence):
  outputs, *references = files(
      out=out, **{f"ref{i}": text for i, text in enumerate(refs)})
  with pytest.raises(errors.UserError, match=sentence):
    scored_texts.read(layout, outputs, references)


def test_categories(files):
  (path,) = files(kinds="Food\nArtist\nseen\nunseen\n")
  assert scored_texts.splits(path, 4) == ["seen", "unseen"] * 2
  with pytest.raises(errors.UserError, match="4 categories for 3 outputs"):
    scored_texts.splits(path, 3)
  (path,) = files(kinds="Food\nArtists\n")
  with pytest.raises(errors.UserError, match="line 2: 'Artists' .* as Artist$"):
    scored_texts.splits(path, 2)
