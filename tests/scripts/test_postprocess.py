"""The commands that cut predictions. Oracles: LOPA's counts, ground truth."""

import json

import pytest

from prompt_tuning.data import templates
from prompt_tuning.scripts import postprocess_cruxeval, postprocess_mbpp

ROW = {"task_id": "MBPP/1", "language": "python", "data_type": "MBPP",
       "completion": "  x = 1\n  return x y\n\ndef g(): pass"}


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def predictions(tmp_path):
  path = tmp_path / "mbxp_solutions.json"
  path.write_text(json.dumps(ROW) + "\n" + json.dumps(
      ROW | {"completion": "  return 2"}) + "\n")
  return path


@pytest.mark.parametrize("name", [
    "mbxp_solutions.json", "Meta-Llama-3-8B.jsonl", "x"])
def test_mbpp_writes_three_files_whatever_the_name(predictions, name):
  path = predictions.rename(predictions.with_name(name))
  before = path.read_bytes()

  postprocess_mbpp.main([f"--path={path}"])

  def written(ending):
    return read(
        path.with_name(f"{path.stem}_post_processed{ending}{path.suffix}"))

  first, second = written("_stage1"), written("_stage2")
  assert path.read_bytes() == before
  assert first[0] == ROW | {"completion": "  x = 1\n  return x y\n"}
  assert second[0] == ROW | {"completion": "  x = 1\n  return x"}
  assert second[1] == ROW | {"completion": "\n  return 2"}
  assert written("") == [first[0], second[0], first[1], second[1]]


def test_mbpp_indents_as_the_prompt(predictions, tmp_path, capsys):
  problems = tmp_path / "problems.jsonl"
  problems.write_text(json.dumps(
      {"task_id": "MBPP/1", "prompt": "\n\ndef f():\n\t'''x'''\n"}) + "\n")
  flags = [f"--path={predictions}", "--stage2=reindent"]

  postprocess_mbpp.main([*flags, f"--problem_file={problems}"])
  second = read(tmp_path / "mbxp_solutions_post_processed_stage2.json")
  assert second[1]["completion"] == "\treturn 2\n"

  with pytest.raises(SystemExit) as leaving:
    postprocess_mbpp.main(flags)
  assert leaving.value.code == 2
  assert "give them by --problem_file" in capsys.readouterr().err


@pytest.mark.parametrize("content, sentence", [
    ("", "is empty"), ("{}\n", "no text under 'completion'"),
    ("x", "line 1 is not JSON")])
def test_mbpp_refuses_other_files(tmp_path, capsys, content, sentence):
  path = tmp_path / "mbxp_solutions.json"
  path.write_text(content)

  with pytest.raises(SystemExit) as leaving:
    postprocess_mbpp.main([f"--path={path}"])

  assert leaving.value.code == 2
  assert sentence in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["input", "output"])
def test_cruxevals_ground_truth_comes_back(shared_data, tmp_path, mode):
  file = shared_data / "cruxeval" / "cruxeval.jsonl"
  rows = [json.loads(line) for line in file.open()]
  template = templates.Template(f"cruxeval_{mode}", [
      "code", "output" if mode == "input" else "input"])
  path = tmp_path / "output_raw.json"
  path.write_text(json.dumps({row["id"]: [
      f"{template.fill(row)}\nassert f({row['input']}) == {row['output']}\n"
      "[/ANSWER]\n"] for row in rows}))

  postprocess_cruxeval.main([
      f"--path={path}", f"--mode={mode}", f"--problem_file={file}"])

  assert json.loads((tmp_path / "output.json").read_text()) == {
      row["id"]: [f"f({row['input']})" if mode == "input" else row["output"]]
      for row in rows}
  assert len(rows) == 800


def test_cruxeval_never_writes_over_its_input(tmp_path, capsys):
  problems = tmp_path / "cruxeval.jsonl"
  problems.write_text(json.dumps(
      {"id": "a", "code": "c", "input": "1", "output": "2"}))
  path = tmp_path / "mine.json"
  path.write_text('{"a": ["short"]}')
  flags = [f"--path={path}", "--mode=input", f"--problem_file={problems}"]

  postprocess_cruxeval.main(flags)
  assert json.loads((tmp_path / "mine_answers.json").read_text()) == {
      "a": [""]}
  assert "1 problems, 1 texts without an answer" in capsys.readouterr().out

  with pytest.raises(SystemExit) as leaving:
    postprocess_cruxeval.main([*flags, f"--output={path}"])
  assert leaving.value.code == 2
  assert path.read_text() == '{"a": ["short"]}'
