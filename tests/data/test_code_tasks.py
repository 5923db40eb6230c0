"""MBPP and CRUXEval as LOPA reads them.

Oracles: the published files (rows, splits), Python itself for the examples in
our prompts, and where the originals divide prompts from answers.
"""

import json
import re

import pytest

from prompt_tuning import errors
from prompt_tuning.data import code_tasks, tasks, templates

CRUXEVAL = {"input": code_tasks.cruxeval_input_prediction,
            "output": code_tasks.cruxeval_output_prediction}


@pytest.fixture
def cruxeval(shared_data):
  return {kind: make(shared_data / "cruxeval/cruxeval.jsonl")
          for kind, make in CRUXEVAL.items()}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_mbpp_is_split_as_published(shared_data):
  task = code_tasks.mbpp(shared_data / "mbpp/mbpp_release_v1.jsonl")
  train, test = (list(task.examples(split)) for split in ("train", "test"))
  assert [len(train), len(test)] == [487, 487]
  assert (train[0]["task_id"], test[0]["task_id"]) == ("MBPP/1", "MBPP/488")
  published = [json.loads(line) for line in open(
      shared_data / "mbpp/mbpp_test_release_v1.jsonl")]
  assert [row["task_id"] for row in test] == [
      row["task_id"] for row in published]
  first = test[0]
  assert first["inputs"] == first["encoder_text"] == published[0]["prompt"]
  assert first["inputs"].startswith("\n\ndef area_pentagon(a):\n  \"\"\"\n")
  assert first["targets"] == published[0]["canonical_solution"]


def test_cruxeval_is_split_as_published(cruxeval):
  for task in cruxeval.values():
    train, test = (list(task.examples(split)) for split in ("train", "test"))
    assert [row["id"] for row in (*train, *test)] == [
        f"sample_{i}" for i in range(800)]
    assert len(train) == 400


def test_answers_follow_the_last_tag(cruxeval):
  for kind, task in cruxeval.items():
    row = next(task.examples("train"))
    assert row["inputs"].endswith(
        f"\n[PYTHON]\n{row['code']}\nassert "
        + {"input": f"f(??) == {row['output']}",
           "output": f"f({row['input']}) == ??"}[kind]
        + "\n[/PYTHON]\n[ANSWER]")
    assert row["targets"] == (
        f"\nassert f({row['input']}) == {row['output']}\n[/ANSWER]\n")
    assert row["encoder_text"] == row["inputs"]
    assert task.stops == ("[/ANSWER]",)


def test_examples_in_our_prompts_are_true(cruxeval):
  """Their answers run, and complete the assertions above them."""
  for kind, task in cruxeval.items():
    prompt = next(task.examples("train"))["inputs"]
    shots = re.findall(
        r"\[PYTHON\]\n(.*?)\n(assert .*?)\n\[/PYTHON\]\n\[ANSWER\]\n(.*?)\n"
        r"\[/ANSWER\]", prompt, re.DOTALL)
    assert len(shots) == 2
    for code, question, answer in shots:
      exec(f"{code}\n{answer}", {})
      before, after = question.split("??")
      assert answer.startswith(before) and answer.endswith(after)


def test_braces_of_rows_and_templates_are_text(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("x = {'a': {}} {code} -> {input}\n")
  found = templates.Template(path, ["code", "input"]).fill(
      {"code": "{input}", "input": "{code}"})
  assert found == "x = {'a': {}} {input} -> {code}"


@pytest.mark.parametrize("text, says", [
    ("{code}", "no {output}"), ("{code} {output} {input}", "has {input}"),
    (None, "cannot read the template"),
])
def test_unfit_templates_are_refused(tmp_path, text, says):
  path = tmp_path / "mine.txt"
  if text:
    path.write_text(text)
  with pytest.raises(errors.UserError, match=re.escape(says)):
    code_tasks.cruxeval_input_prediction(template=str(path))


@pytest.mark.parametrize("name, says", [
    ("mbpp", "MBPP_FILE, mbpp_release_v1.jsonl.*amazon-science/mxeval"),
    ("cruxeval_input_prediction", "CRUXEVAL_FILE, cruxeval.jsonl"),
    ("cruxeval_output_prediction", "facebookresearch/cruxeval"),
    ("nlg_e2e", "format_tables.*NLG_FOLDER"),
])
def test_names_are_known_and_say_which_file_is_missing(name, says):
  task = tasks.get_task(name)
  assert task.name == name
  with pytest.raises(errors.UserError, match=says):
    next(task.examples("train"))


def test_files_that_do_not_fit_are_refused(tmp_path):
  row = {key: "" for key in (
      "task_id", "prompt", "canonical_solution", "entry_point", "test")}
  part = code_tasks.mbpp(write(tmp_path / "part.jsonl", [row] * 487))
  with pytest.raises(errors.UserError, match="487 rows.*give all of"):
    next(part.examples("test"))
  other = code_tasks.mbpp(write(tmp_path / "o.jsonl", [row, {"code": ""}]))
  with pytest.raises(errors.UserError, match="line 2 has no text 'task_id'"):
    next(other.examples("train"))


def test_fingerprints_follow_data_and_template(tmp_path):
  rows = [{"id": "a", "code": "c", "input": "1", "output": "2"}] * 2
  file = write(tmp_path / "a.jsonl", rows)
  other = tmp_path / "t.txt"
  other.write_text("{code}{output}")
  made = [
      code_tasks.cruxeval_input_prediction(file, *more, train_rows=1)
      for more in ((), (str(other),))]
  prints = [task.fingerprint("test") for task in made]
  write(file, [rows[0], rows[0] | {"output": "3"}])
  prints.append(made[0].fingerprint("test"))
  assert len(set(prints)) == 3


def test_files_for_the_benchmarks(tmp_path):
  """As mxeval's and CRUXEval's programs read them."""
  mbpp = tasks.get_task("mbpp").prediction_files(
      [{"task_id": "MBPP/1"}], [["  return 1", "é"]])
  assert [json.loads(line) for line in mbpp[
      "mbxp_solutions.json"].splitlines()] == [
          {"task_id": "MBPP/1", "language": "python", "completion": text,
           "data_type": "MBPP"} for text in ("  return 1", "é")]
  assert json.loads(mbpp["all_codes.json"]) == {"MBPP/1": ["  return 1", "é"]}
  row = {"id": "sample_1", "code": "c", "input": "i", "output": "o",
         "inputs": "p [ANSWER]"}
  crux = tasks.get_task("cruxeval_input_prediction").prediction_files(
      [row], [["\nassert f(i) == o\n"]])
  assert json.loads(crux["output_raw.json"]) == {
      "sample_1": ["p [ANSWER]\nassert f(i) == o\n"]}
  assert json.loads(crux["references.json"]) == {"sample_1": ["c", "i", "o"]}


@pytest.mark.parity
def test_seqio_registers_them_with_the_file_that_gin_gives(
    shared_data, clean_gin):
  seqio = pytest.importorskip("seqio")
  from prompt_tuning.data import seqio_tasks

  clean_gin.parse_config(
      "code_tasks.cruxeval_output_prediction.file = "
      f"{str(shared_data / 'cruxeval/cruxeval.jsonl')!r}")
  name = "cruxeval_output_prediction"
  vocabulary = seqio.ByteVocabulary()
  try:
    seqio_tasks.register(name, vocabulary)
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        {"inputs": 4096, "targets": 4096}, "test", shuffle=False)
    first = next(dataset.as_numpy_iterator())
  finally:
    seqio.TaskRegistry.remove(name)
  ours = next(tasks.get_task(name).examples("test"))
  assert ours["id"] == "sample_400"
  assert vocabulary.decode(first["inputs"].tolist()) == ours["inputs"]
  assert vocabulary.decode(first["targets"].tolist()) == ours["targets"]
