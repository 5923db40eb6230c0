"""Tasks from files: each format, SST-2, and every mistake with its line."""

import gzip
import json

import gin
import pytest

from prompt_tuning import errors
from prompt_tuning.data import features, files, tasks, vocabularies
from prompt_tuning.metrics import accuracy, bleu


def write(path, content):
  content = content.encode() if isinstance(content, str) else content
  if path.suffix == ".gz":
    content = gzip.compress(content)
  path.write_bytes(content)
  return path


def pairs(task, split="train"):
  return [(row["inputs"], row["targets"]) for row in task.examples(split)]


ROWS = [("a  b", "0"), ("say \"hi\"", "1")]
CONTENTS = {
    ".tsv": 'text\tlabel\na  b\t0\nsay "hi"\t1\n',
    ".csv": 'text,label\na  b,0\n"say ""hi""",1\n',
    ".jsonl": '{"text": "a  b", "label": 0}\n'
              '{"text": "say \\"hi\\"", "label": "1"}\n',
}


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_formats(tmp_path, suffix, end):
  path = write(tmp_path / f"rows{suffix}{end}", CONTENTS[suffix])
  task = files.FileTask(train=path)
  assert isinstance(task, tasks.Task)
  assert task.splits == ("train",)
  assert task.metric_fns == (accuracy.accuracy,)
  assert pairs(task) == ROWS


@pytest.mark.parametrize("suffix", CONTENTS)
def test_windows_files_blank_lines_and_no_last_line_end(tmp_path, suffix):
  content = "\ufeff" + CONTENTS[suffix].replace("\n", "\r\n\r\n").rstrip()
  task = files.FileTask(train=write(tmp_path / f"rows{suffix}", content))
  assert pairs(task) == ROWS


def test_only_line_feeds_end_lines(tmp_path):
  text = "one\u2028two\x85three\x0b"
  path = write(tmp_path / "rows.tsv", f"text\tlabel\n{text}\tyes\n")
  assert pairs(files.FileTask(train=path)) == [(text, "yes")]


def test_quoted_csv_may_span_lines(tmp_path):
  path = write(tmp_path / "rows.csv", 'text,label\n"a\nb, c",x\nd,y\n')
  assert pairs(files.FileTask(train=path)) == [("a\nb, c", "x"), ("d", "y")]


def test_templates_columns_and_labels(tmp_path):
  path = write(tmp_path / "rows.tsv", "is it\tno {really}\t0\t9\n")
  task = files.FileTask(
      train=path, columns=["the question", "text", "label", "id"],
      inputs="{{q}}: {the question} context: {text}",
      labels={0: "false", "1": "true"})
  (row,) = task.examples("train")
  assert row["inputs"] == "{q}: is it context: no {really}"
  assert row["targets"] == "false"
  assert row["id"] == "9"
  bare = files.FileTask(
      train=path, columns=["the question", "text", "label", "id"],
      inputs="the question", targets="{label} {id}")
  assert pairs(bare) == [("is it", "0 9")]


def test_no_targets_for_prediction(tmp_path):
  path = write(tmp_path / "rows.jsonl", '{"text": "a"}\n')
  assert pairs(files.FileTask(train=path, targets=None)) == [("a", "")]


def test_sst2(shared_data):
  task = files.FileTask(
      "sst2", train=shared_data / "sst2" / "train.tsv",
      validation=shared_data / "sst2" / "dev.tsv", columns=["text", "label"],
      inputs="sentence: {text}", labels={0: "negative", 1: "positive"})
  assert task.splits == ("train", "validation")
  train, validation = pairs(task), pairs(task, "validation")
  assert (len(train), len(validation)) == (6920, 872)
  assert train[1] == (
      "sentence: apparently reassembled from the cutting room floor of any "
      "given daytime soap", "negative")
  vocabulary = vocabularies.SentencePieceVocabulary(
      shared_data / "t5x" / "t5_vocab", 100)
  examples = features.tokenize(
      task, "validation", vocabulary, vocabulary,
      {"inputs": 64, "targets": 4})
  assert len(examples) == 872
  assert {tuple(examples.ids("targets", i)) for i in range(872)} == {
      (1465, 1), (2841, 1)}


def test_fingerprint_is_of_contents_and_settings(tmp_path):
  one = write(tmp_path / "one.tsv", CONTENTS[".tsv"])
  other = write(tmp_path / "other.tsv", CONTENTS[".tsv"])
  changed = write(tmp_path / "changed.tsv", CONTENTS[".tsv"] + "c\t1\n")
  first = files.FileTask(train=one).fingerprint
  assert files.FileTask(name="x", train=other).fingerprint == first
  different = [
      files.FileTask(train=changed), files.FileTask(validation=one),
      files.FileTask(train=one, inputs="x{text}"),
      files.FileTask(train=one, targets=None),
      files.FileTask(train=one, columns=["text", "label"]),
      files.FileTask(train=one, labels={0: "no", 1: "yes"})]
  prints = {task.fingerprint for task in different}
  assert len(prints) == len(different)
  assert first not in prints


def test_everything_is_bound_in_gin(tmp_path):
  path = write(tmp_path / "rows.tsv", "a\t0\nb\t1\n")
  config = f"""
from __gin__ import dynamic_registration
import builtins
from prompt_tuning.data import files
from prompt_tuning.metrics import accuracy

MIXTURE_OR_TASK_NAME = @files.FileTask()
builtins.dict.task = %MIXTURE_OR_TASK_NAME
files.FileTask.name = 'mine'
files.FileTask.train = {str(path)!r}
files.FileTask.columns = ['text', 'label']
files.FileTask.inputs = 'say: {{text}}'
files.FileTask.targets = 'label'
files.FileTask.labels = {{0: 'no', 1: 'yes'}}
files.FileTask.metric_fns = [@accuracy.accuracy]
"""
  with gin.unlock_config():
    gin.clear_config()
    gin.parse_config(config)
    task = gin.get_configurable(dict)()["task"]
    gin.clear_config()
  task = tasks.get_task(task)
  assert task.name == "mine"
  assert pairs(task) == [("say: a", "no"), ("say: b", "yes")]
  assert task.metric_fns[0](["a"], ["a"]) == {"accuracy": 100.0}


@pytest.mark.parametrize("name, content, message", [
    ("rows.tsv", "text\tlabel\na\t0\nb\n", "rows.tsv line 3 has 1 columns"),
    ("rows.tsv", "text\tlabel\na\t0\t5\n", "rows.tsv line 2 has 3 columns"),
    ("rows.tsv", "sentence\tlabel\na\t0\n",
     "rows.tsv line 2 has no column 'text'.*its columns are 'sentence'"),
    ("rows.tsv", "text\ttext\na\t0\n", "line 1 names a column twice"),
    ("rows.tsv", "", "rows.tsv is empty"),
    ("rows.tsv", "\n\n", "rows.tsv has no rows"),
    ("rows.tsv", "text\tlabel\n", "rows.tsv has no rows"),
    ("rows.tsv", b"text\tlabel\ncaf\xe9\t0\n", "line 2 is not UTF-8"),
    ("rows.csv", "", "rows.csv is empty"),
    ("rows.csv", 'text,label\n"a,0\nb,1\n', "line 3 is not CSV"),
    ("rows.csv", 'text,label\na,0\n"b"c,1\n', "line 3 is not CSV"),
    ("rows.csv", "text,label\na,b,0\n", "line 2 has 3 columns"),
    ("rows.jsonl", '{"text": "a", "label": 0}\n{"text": \n',
     "line 2 is not JSON"),
    ("rows.jsonl", "[1, 2]\n", "line 1 is no JSON object"),
    ("rows.jsonl", '{"text": "a"}\n',
     "line 1 has no column 'label', which FileTask.targets names"),
    ("rows.jsonl", '{"text": null, "label": 0}\n',
     "line 1 has null in the column 'text'"),
    ("rows.jsonl", '{"text": ["a"], "label": 0}\n', 'line 1 has ."a"'),
    ("rows.jsonl", "[" * 100_000, "line 1 is not JSON"),
    ("rows.tsv.gz", "text\tlabel\n", "rows.tsv.gz has no rows"),
])
def test_mistakes_in_files(tmp_path, name, content, message):
  task = files.FileTask(train=write(tmp_path / name, content))
  with pytest.raises(errors.UserError, match=message):
    list(task.examples("train"))


def test_incomplete_rows_can_be_left_out(tmp_path):
  path = write(tmp_path / "rows.tsv", "text\tlabel\na\t0\nb\nc\t1\n")
  task = files.FileTask(train=path, skip_incomplete=True)
  with pytest.warns(UserWarning, match="1 rows have fewer columns than 2"):
    assert pairs(task) == [("a", "0"), ("c", "1")]
  write(path, "text\tlabel\na\t0\tx\n")  # more is no row of the table
  with pytest.raises(errors.UserError, match="line 2 has 3 columns"):
    pairs(task)


def test_damaged_gzip(tmp_path):
  whole = gzip.compress(("text\tlabel\n" + "a\t0\n" * 9999).encode())
  for number, content in enumerate((b"plain", whole[:60], whole[:-9])):
    path = tmp_path / f"{number}.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match="cannot read .*after line"):
      list(files.FileTask(train=path).examples("train"))


def test_unknown_label_names_its_line(tmp_path):
  path = write(tmp_path / "rows.tsv", "text\tlabel\na\t0\nb\tmaybe\n")
  task = files.FileTask(train=path, labels={0: "no", 1: "yes"})
  with pytest.raises(errors.UserError, match="line 3 .*'maybe'.*'0', '1'"):
    list(task.examples("train"))


@pytest.mark.parametrize("settings, message", [
    ({}, "FileTask has no files"),
    ({"train": "rows.dat"}, "cannot tell how rows.dat"),
    ({"train": "none.tsv"}, "FileTask.train='none.tsv': No such file"),
    ({"train": "rows.tsv", "inputs": "{text"}, "FileTask.inputs='{text'"),
    ({"train": "rows.tsv", "inputs": "{}"}, "plain column names"),
    ({"train": "rows.tsv", "targets": "{a!r}"}, "FileTask.targets"),
])
def test_mistakes_in_settings(tmp_path, monkeypatch, settings, message):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "rows.tsv", CONTENTS[".tsv"])
  with pytest.raises(errors.UserError, match=message):
    files.FileTask(**settings)


def test_json_scalars_become_text(tmp_path):
  rows = [{"text": 1.5, "label": True}, {"text": -3, "label": False}]
  path = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
  assert pairs(files.FileTask(train=path)) == [("1.5", "True"), ("-3", "False")]


E2E = """name : A | food : French||A serves French food .\t
name : B | food : Thai || B is Thai .

name : A | food : French|| French food is at A .
"""


def e2e(path, **settings):
  return files.FileTask(**{
      "train": path, "validation": path, "separator": "||",
      "columns": ["table", "text"], "inputs": "{table}\nText:",
      "targets": " {text}", "several_references": True,
      "metric_fns": (bleu.bleu,)} | settings)


def test_separated_fields_lose_outer_white_space(tmp_path):
  for name in ("rows.txt", "rows.txt.gz"):
    task = e2e(write(tmp_path / name, E2E))
    assert pairs(task) == [
        ("name : A | food : French\nText:", " A serves French food ."),
        ("name : B | food : Thai\nText:", " B is Thai ."),
        ("name : A | food : French\nText:", " French food is at A .")]


def test_rows_with_the_same_inputs_are_references_of_one_example(tmp_path):
  task = e2e(write(tmp_path / "rows.txt", E2E))
  examples = list(task.examples("validation"))
  assert pairs(task, "validation") == [
      ("name : A | food : French\nText:", " A serves French food ."),
      ("name : B | food : Thai\nText:", " B is Thai .")]
  assert [row["references"] for row in examples] == [
      [" A serves French food .", " French food is at A ."], [" B is Thai ."]]
  targets = [row["targets"] for row in examples]
  found = tasks.evaluate(
      task, examples, targets, ["French food is at A .", "B is Thai ."])
  assert found == {"bleu": pytest.approx(100.0)}
  plain = e2e(tmp_path / "rows.txt", several_references=False)
  assert len(pairs(plain, "validation")) == 3
  assert plain.fingerprint != task.fingerprint


def test_e2e_has_the_homeworks_references(shared_data):
  """Whose reference file was grouped by table by others."""
  theirs = {}
  lines = (shared_data / "e2e/table_to_text_reference/dev.out").read_text()
  for line in lines.splitlines():
    _, table, text = line.split("||")
    theirs.setdefault(table.strip(), []).append(" " + text.strip())
  examples = e2e(shared_data / "e2e/valid.txt.gz").examples("validation")
  ours = {row["table"]: row["references"] for row in examples}
  assert len(ours) == 547
  assert {table: sorted(texts) for table, texts in ours.items()} == {
      table: sorted(texts) for table, texts in theirs.items()}


def test_labels_to_rank(tmp_path):
  path = write(tmp_path / "rows.tsv", CONTENTS[".tsv"])
  labels = {0: " no", 1: " yes", 2: " yes"}
  task = files.FileTask(train=path, labels=labels, rank_labels=True)
  assert task.label_texts == (" no", " yes")
  assert files.FileTask(train=path, labels=labels).label_texts is None


def test_labels_do_not_matter_without_targets(tmp_path):
  path = write(tmp_path / "rows.tsv", "text\nhello\n")
  task = files.FileTask(
      test=path, targets=None, labels={0: "no", 1: "yes"}, rank_labels=True)
  assert pairs(task, "test") == [("hello", "")]
  assert task.label_texts == ("no", "yes")


@pytest.mark.parametrize("name, settings, message", [
    ("rows.txt", {}, "FileTask.separator is None"),
    ("rows.tsv", {"separator": "||"}, r"separator is '\|\|'"),
    ("rows.tsv", {"rank_labels": True}, "FileTask.labels, which is not set"),
])
def test_options_that_do_not_go_together(tmp_path, name, settings, message):
  path = write(tmp_path / name, "text\tlabel\na\t0\n")
  with pytest.raises(errors.UserError, match=message):
    files.FileTask(train=path, **settings)


def test_a_row_with_another_number_of_separators(tmp_path):
  path = write(tmp_path / "rows.txt", "a||b\na||b||c\n")
  with pytest.raises(errors.UserError, match="line 2 has 3 columns where 2"):
    pairs(e2e(path))
