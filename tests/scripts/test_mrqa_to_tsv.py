"""Tests of scripts.mrqa_to_tsv. Oracle: the csv module, on what went in."""

import csv
import gzip
import json

import pytest

from prompt_tuning.scripts import mrqa_to_tsv

CONTEXTS = [
    {"context": "Ann saw\tBob.\nHe \"ran\".", "qas": [
        {"qid": "a1", "question": "Who\nran?", "answers": ["Bob", "he  "],
         "detected_answers": [{"text": "Bob"}, {"text": "He"}]},
        {"qid": "a2", "question": "Who saw?", "answers": ["Ann"],
         "detected_answers": [{"text": "Ann"}]}]},
    {"context": "Nothing.", "qas": [
        {"qid": "b1", "question": "Why?", "answers": ["So it is"],
         "detected_answers": []}]}]


@pytest.fixture
def dataset(tmp_path):
  path = tmp_path / "set.v1.jsonl.gz"
  lines = [{"header": {"dataset": "set"}}, *CONTEXTS]
  with gzip.open(path, "wt", encoding="utf-8") as stream:
    stream.write("".join(json.dumps(line) + "\n" for line in lines))
  return path


def read(path):
  with open(path, encoding="utf-8", newline="") as stream:
    return list(csv.DictReader(stream, delimiter="\t"))


def test_every_question_is_a_row(dataset, tmp_path, capsys):
  mrqa_to_tsv.main([f"--jsonl={dataset}"])
  assert capsys.readouterr().out == f"{tmp_path / 'set.v1.tsv'}: 3 questions\n"
  rows = read(tmp_path / "set.v1.tsv")
  assert [row["id"] for row in rows] == ["a1", "a2", "b1"]
  assert rows[0] == {
      "id": "a1", "context": 'Ann saw Bob. He "ran".', "question": "Who ran?",
      "answer": "Bob", "answers": "Bob|||he "}
  assert rows[1]["context"] == rows[0]["context"]
  assert rows[2]["answer"] == rows[2]["answers"] == "So it is"


def test_the_delimiter_and_the_header_are_heeded(dataset, tmp_path):
  """The original read --delim and then used its default."""
  plain, output = tmp_path / "plain.jsonl", tmp_path / "out.tsv"
  plain.write_text("".join(json.dumps(line) + "\n" for line in CONTEXTS))
  mrqa_to_tsv.main([
      f"--json={plain}", "--header=0", "--delim=; ", f"--output={output}"])
  assert [row["answers"] for row in read(output)] == [
      "Bob; he ", "Ann", "So it is"]


def test_bad_input(dataset, tmp_path, capsys):
  context = dict(CONTEXTS[0])
  bad = tmp_path / "bad.jsonl"
  for content, flags, words in (
      ("", (), "no questions behind its 1 lines"),
      ("{}\n{}\n", (), "bad.jsonl line 2 is not an example of MRQA (it has no "
       "'context')"),
      ("{}\nnot json\n", (), "line 2"),
      ("{}\n[1]\n", (), "line 2"),
      ("{}\n" + json.dumps(context), ("--delim=b",), "the delimiter 'b'"),
      ("{}\n", ("--header=-1",), "must be 0 or more"),
      (None, (f"--jsonl={tmp_path / 'none.jsonl'}",), "cannot read"),
      (None, (f"--jsonl={tmp_path / 'cut.gz'}",), "cannot read")):
    if content is not None:
      bad.write_text(content)
    (tmp_path / "cut.gz").write_bytes(dataset.read_bytes()[:-30])
    with pytest.raises(SystemExit) as leaving:
      mrqa_to_tsv.main([
          f"--jsonl={bad}", f"--output={tmp_path / 'out.tsv'}", *flags])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out.tsv").exists()


def test_a_question_without_an_answer_is_refused():
  asked = CONTEXTS[1]["qas"][0] | {"answers": []}
  with pytest.raises(ValueError, match="'b1' has no answer"):
    list(mrqa_to_tsv.rows(CONTEXTS[1] | {"qas": [asked]}))
