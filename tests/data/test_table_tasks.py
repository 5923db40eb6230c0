"""E2E, WebNLG and DART from the public files to examples.

Oracles: the numbers of rows and contexts that are published, and rows of
LOPA's data; other code of the project that reads E2E; the strings that prefix
tuning's code (arXiv 2101.00190) makes, written out.
"""

import gzip
import json

import pytest

from prompt_tuning import command_line, errors
from prompt_tuning.data import files, table_tasks, tasks
from prompt_tuning.scripts import format_tables
from prompt_tuning.train import settings

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


@pytest.mark.parametrize("dataset, text, says", [
    ("e2e", "a||b\n\na table\n", "file: line 3 has no '||'"),
    ("e2e", "a||b\na || \n", "file: line 2 has no text behind its '||'"),
    ("e2e", "||b\n", "file: line 1 has no table before its '||'"),
    ("e2e", "", "no rows"),
    ("webnlg", json.dumps({"entries": [{"1": {
        "category": "Food", "modifiedtripleset": [],
        "lexicalisations": []}}]}), "file: entry 1 has no reference"),
    ("dart", json.dumps([
        {"tripleset": [["a", "B", "c"]], "annotations": [{"text": "d"}]},
        {"tripleset": [["a", "B", "c"]], "annotations": []}]),
     "file: entry 2 has no reference")])
def test_bad_lines_are_named(tmp_path, capsys, dataset, text, says):
  path = tmp_path / "file"
  path.write_text(text)
  with pytest.raises(SystemExit) as leaving:
    format_tables.main(["--dataset", dataset, "--dev", str(path), "--folder",
                        str(tmp_path / "out")])
  assert leaving.value.code == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and says in line
  assert not list(tmp_path.rglob("*.jsonl"))


def test_a_style_is_for_webnlg_alone(tmp_path, capsys):
  with pytest.raises(SystemExit) as leaving:
    format_tables.main([
        "--dataset", "dart", "--dev", "x", "--folder", str(tmp_path),
        "--webnlg_style", "prefix_tuning"])
  assert leaving.value.code == 2
  assert "--webnlg_style is for --dataset webnlg" in capsys.readouterr().err


WEBNLG = {"entries": [
    {"1": {"category": "Food", "modifiedtripleset": [
        {"subject": "A", "property": "b", "object": "C"},
        {"subject": "D", "property": "e", "object": "F"}],
           "lexicalisations": [{"comment": "good", "lex": "One."},
                               {"comment": "toFix", "lex": "Bad."}]}},
    {"2": {"category": "Artist", "modifiedtripleset": [
        {"subject": "G", "property": "h", "object": "I"},
        {"subject": "J", "property": "k", "object": "L"}],
           "lexicalisations": [{"comment": "good", "lex": "Two."}]}}]}


@pytest.mark.parametrize("style, expected", [
    ("lora", [("A : b : C | D : e : F", "One."),
              ("G : h : I | J : k : L", "Two.")]),
    ("prefix_tuning", [(" | A : b : C | D : e : F", "One."),
                       (" | G : h : I | J : k : L", "Two.")]),
    ("prefix_tuning_decoding", [("A : b : CD : e : F", "One."),
                                ("A : b : CD : e : F", "Bad."),
                                (" | G : h : I | J : k : L", "Two.")])])
def test_styles_of_webnlg(style, expected):
  assert [(row["context"], row["completion"])
          for row in table_tasks.webnlg_rows(WEBNLG, style)] == expected


# What prefix tuning's code trains on, of lines as they are in the files.
STRINGS = {
    "e2e": (
        "name : Blue Spice | Type : coffee shop||A shop . \n", [],
        " name : Blue Spice | Type : coffee shop <|endoftext|> A shop .  "
        "<|endoftext|>"),
    "webnlg": (
        json.dumps(WEBNLG), ["--webnlg_style", "prefix_tuning"],
        "  | A : b : C | D : e : F <|endoftext|> One. <|endoftext|>"),
    "dart": (
        json.dumps([{"tripleset": [["A", "BE", "c"], ["D", "e F", "g"]],
                     "annotations": [{"source": "x", "text": "One ."}]}]), [],
        " A : be : c | D : e f : g <|endoftext|> One . <|endoftext|>")}


@pytest.mark.parametrize("name", STRINGS)
def test_strings_are_prefix_tunings(tmp_path, clean_gin, name):
  """To the blank: with the template and targets of runs/prefix_*.gin."""
  text, flags, expected = STRINGS[name]
  (tmp_path / "file").write_text(text)
  format_tables.main(["--dataset", name, "--train", str(tmp_path / "file"),
                      "--folder", str(tmp_path), *flags])
  command_line.configure([
      *(f"--gin_file={command_line.PACKAGE}/configs/{file}.gin" for file in (
          "models/gpt2_medium", "prompts/prefix", f"runs/prefix_{name}")),
      "--gin.INITIAL_CHECKPOINT_PATH='base'", "--gin.MODEL_DIR='run'",
      f"--gin.NLG_FOLDER={str(tmp_path)!r}"])
  with clean_gin.config_scope("train"):
    dataset = clean_gin.get_configurable(settings.DatasetConfig)()
  example = next(dataset.mixture_or_task_name.examples("train"))
  assert (example["inputs"] + example["targets"]
          + "<|endoftext|>") == expected


def test_real_entries_as_prefix_tunings_code_reads_them(shared_data):
  """Its loops over WebNLG's file of development, with their slip."""
  path = shared_data / "webnlg/dev.json.gz"
  with gzip.open(path, "rt") as file:
    entries = json.load(file)["entries"]
  expected = []
  for i, entry in enumerate(entries):
    item, context = entry[str(i + 1)], ""
    for triple in item["modifiedtripleset"]:
      if i > 0:
        context += " | "
      context += "{subject} : {property} : {object}".format(**triple)
    expected += [(context, text["lex"]) for text in item["lexicalisations"]]
  rows = format_tables.read("webnlg", str(path), "prefix_tuning_decoding")
  assert [(row["context"], row["completion"]) for row in rows] == expected
  assert len(rows) == 2268


def test_targets_have_the_text():
  with pytest.raises(errors.UserError, match="TARGETS is ' text' and has no"):
    table_tasks.nlg_e2e("folder", targets=" text")


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
  assert files["categories.txt"] == "seen\nunseen\n"
  assert len(files) == 3 + 3 * (1 + 6)


def test_dart_has_no_categories():
  rows = [{"context": "a", "references": ["b"]}]
  files = tasks.get_task("nlg_dart").prediction_files(rows, [["c"]])
  assert len(files) == 2 + 1 + 6
