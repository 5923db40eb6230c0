"""E2E, WebNLG and DART from the public files to examples.

Oracles: the numbers of rows and contexts that are published, and rows of
LOPA's data; other code of the project that reads E2E.
"""

import json

import pytest

from prompt_tuning import errors
from prompt_tuning.data import files, table_tasks, tasks
from prompt_tuning.scripts import format_tables

# name: (file, rows, contexts, first row)
PUBLIC = {
    "e2e": ("e2e/test.txt.gz", 4693, 630, {
        "context": "name : Blue Spice | Type : coffee shop | area : city "
                   "centre",
        "completion": "A coffee shop in the city centre area called Blue "
                      "Spice ."}),
    "webnlg": ("webnlg/dev.json.gz", 2258, 870, {
        "context": "Aarhus : leaderName : Jacob_Bundsgaard",
        "completion": "The leader of Aarhus is Jacob Bundsgaard.",
        "cate": True}),
    "dart": ("dart/dev.json.gz", 6980, None, {
        "context": "Mars Hill College : joined : 1973 | Mars Hill College : "
                   "location : Mars Hill, North Carolina",
        "completion": "A school from Mars Hill, North Carolina, joined in "
                      "1973."}),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_come_into_the_layout(
    shared_data, tmp_path, capsys, name):
  file, rows, contexts, first = PUBLIC[name]
  format_tables.main([
      "--dataset", name, "--dev", str(shared_data / file), "--folder",
      str(tmp_path)])
  lines = (tmp_path / "dev_formatted.jsonl").read_text().splitlines()
  assert len(lines) == rows
  assert json.loads(lines[0]) == first
  assert f"{rows:,} rows of " in capsys.readouterr().out
  if contexts is None:
    return
  task = getattr(table_tasks, f"nlg_{name}")(tmp_path)
  examples = list(task.examples("validation"))
  assert len(examples) == contexts
  assert sum(len(row["references"]) for row in examples) == rows


def test_validation_of_e2e_and_unseen_categories(shared_data):
  """WebNLG's test set: half of it is of categories that training lacks."""
  rows = format_tables.read("e2e", str(shared_data / "e2e/valid.txt.gz"))
  assert (len(rows), len(table_tasks.grouped(rows))) == (4672, 547)
  rows = table_tasks.grouped(
      format_tables.read("webnlg", str(shared_data / "webnlg/test.json.gz")))
  # Gardent et al. 2017, table 2: 971 seen and 891 unseen inputs.
  assert [sum(row["cate"] is kind for row in rows) for kind in (
      True, False)] == [971, 891]


def test_references_are_those_of_the_plain_file_task(shared_data, tmp_path):
  source = str(shared_data / "e2e/test.txt.gz")
  format_tables.main(["--dataset", "e2e", "--test", source, "--folder",
                      str(tmp_path)])
  ours = list(table_tasks.nlg_e2e(tmp_path).examples("test"))
  plain = files.FileTask(
      test=source, inputs="table", targets="text", columns=["table", "text"],
      separator="||", several_references=True)
  theirs = list(plain.examples("test"))
  assert [(row["context"], row["references"]) for row in ours] == [
      (row["inputs"], row["references"]) for row in theirs]


def test_training_is_on_every_reference(tmp_path):
  (tmp_path / "train_formatted.jsonl").write_text(
      '{"context": "a", "completion": "b"}\n'
      '{"context": "a", "completion": "c"}\n')
  task = table_tasks.nlg_dart(tmp_path, "table_gpt2")
  assert [(row["inputs"], row["targets"], row["encoder_text"])
          for row in task.examples("train")] == [
              ("a<|endoftext|>", " b", "a"), ("a<|endoftext|>", " c", "a")]


@pytest.mark.parametrize("text, says", [
    ("a table\n", "line 1 has no '||'"), ("", "no rows")])
def test_bad_lines_are_named(tmp_path, capsys, text, says):
  path = tmp_path / "e2e.txt"
  path.write_text(text)
  with pytest.raises(SystemExit) as leaving:
    format_tables.main(["--dataset", "e2e", "--dev", str(path), "--folder",
                        str(tmp_path / "out")])
  assert leaving.value.code == 2
  assert says in capsys.readouterr().err


def test_another_dataset_is_not_read(tmp_path):
  path = tmp_path / "dart.json"
  path.write_text('[{"triples": []}]')
  with pytest.raises(errors.UserError, match="not a file of dart"):
    format_tables.read("dart", str(path))


def test_a_hypothesis_ends_at_a_blank_line():
  assert table_tasks.hypothesis(" a\nb \n\nc") == "a b"


ROWS = [{"context": "A : b : C", "references": ["The b, of A.", "It's C"],
         "cate": True},
        {"context": "D : e : F", "references": ["F"], "cate": False}]


def test_files_for_e2es_measures():
  files = tasks.get_task("nlg_e2e").prediction_files(
      ROWS, [[" x\ny\n\nz", "other"], [" u"]])
  assert files == {
      "e2e_ref.txt": "The b, of A.\nIt's C\n\nF\n",
      "e2e_pred.txt": "x y\nu\n", "e2e_raw.txt": " x y  z\n u\n",
      "e2e_context.txt": "A : b : C\nD : e : F\n"}


def test_files_for_webnlgs_measures():
  files = tasks.get_task("nlg_webnlg").prediction_files(
      ROWS, [["It's\nA_b"], ["F."]])
  assert files["hypothesis_all"] == "it ' s a_b\nf .\n"
  assert (files["hypothesis_seen"], files["hypothesis_unseen"]) == (
      "it ' s a_b\n", "f .\n")
  assert files["references_all/reference0"] == "the b , of a .\nf\n"
  assert files["references_all/reference1"] == "it ' s c\nf\n"
  assert files["references_seen/reference5"] == "the b , of a .\n"
  assert len(files) == 2 + 3 * (1 + 6)


def test_dart_has_no_categories():
  rows = [{"context": "a", "references": ["b"]}]
  files = tasks.get_task("nlg_dart").prediction_files(rows, [["c"]])
  assert len(files) == 2 + 1 + 6
