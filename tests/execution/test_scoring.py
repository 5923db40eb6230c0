"""Scoring: published counts, interruptions, other runs' results, bad files.

Oracles: MBPP's canonical solutions and CRUXEval's ground truth, of which
mxeval and CRUXEval's own scorer pass 959 of 974 and 800 of 800.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from prompt_tuning.execution import (
    cage,
    completions,
    cruxeval,
    mbpp,
    prediction_files,
    scoring,
)
from prompt_tuning.scripts import score_cruxeval, score_mbpp

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="generated programs run on Linux only")

# Of the canonical solutions: those that fail as they are, and those that each
# stage breaks.
FAIL = (56, 64, 160, 341, 349, 367, 596, 601, 607, 631, 642, 899, 927, 966, 967)
STAGE_1, STAGE_2 = (223, 717, 940), (342, 757)


@pytest.fixture(scope="module")
def caged():
  return cage.Cage(execute_generated_code=True)


@pytest.fixture(scope="module")
def mbpp_problems(shared_data):
  return prediction_files.problems(
      shared_data / "mbpp" / "mbpp_release_v1.jsonl", mbpp.KEY, mbpp.KEYS)


@pytest.fixture(scope="module")
def cruxeval_problems(shared_data):
  return prediction_files.problems(
      shared_data / "cruxeval" / "cruxeval.jsonl", cruxeval.KEY, cruxeval.KEYS)


def _failing(caged, problems, path, change=lambda text: text):
  predictions = [
      prediction_files.Prediction(name, 0, change(row["canonical_solution"]))
      for name, row in problems.items()]
  rows = scoring.run(mbpp.samples(problems, predictions), caged, path)
  return [int(row["task_id"].removeprefix("MBPP/")) for row in rows
          if not row["passed"]]


def _both_stages(text):
  return completions.until_return(completions.until_top_level(text))


def test_the_canonical_solutions_that_fail(caged, mbpp_problems, tmp_path):
  chosen = {f"MBPP/{n}" for n in FAIL + STAGE_1 + STAGE_2 + (1, 2, 488, 974)}
  problems = {k: v for k, v in mbpp_problems.items() if k in chosen}

  plain = _failing(caged, problems, tmp_path / "0")
  first = _failing(
      caged, problems, tmp_path / "1", completions.until_top_level)
  second = _failing(caged, problems, tmp_path / "2", _both_stages)

  assert plain == list(FAIL)
  assert first == sorted(FAIL + STAGE_1)
  assert second == sorted(FAIL + STAGE_1 + STAGE_2)


@pytest.mark.slow
def test_all_canonical_solutions(caged, mbpp_problems, tmp_path):
  plain = _failing(caged, mbpp_problems, tmp_path / "0")
  first = _failing(
      caged, mbpp_problems, tmp_path / "1", completions.until_top_level)
  second = _failing(caged, mbpp_problems, tmp_path / "2", _both_stages)

  assert plain == list(FAIL)
  assert first == sorted(FAIL + STAGE_1)
  assert second == sorted(FAIL + STAGE_1 + STAGE_2)
  # The test split's 487: 478, 476 and 475 pass.
  assert [sum(n >= 488 for n in found) for found in (plain, first, second)] == [
      9, 11, 12]


@pytest.mark.parametrize("mode", ["input", "output"])
@pytest.mark.parametrize("count", [
    12, pytest.param(800, marks=pytest.mark.slow)])
def test_cruxevals_ground_truth_passes(
    caged, cruxeval_problems, tmp_path, mode, count):
  problems = dict(list(cruxeval_problems.items())[:count])
  predictions = [
      prediction_files.Prediction(
          name, 0, f"f({row['input']})" if mode == "input" else row["output"])
      for name, row in problems.items()]

  rows = scoring.run(
      cruxeval.samples(problems, predictions, mode), caged, tmp_path / "r")

  assert len(rows) == count
  assert [row for row in rows if not row["passed"]] == []


def test_cruxevals_answers_of_the_wrong_kind_are_not_run():
  problem = {"code": "def f(x): return x", "input": "1", "output": "1"}

  assert cruxeval.program(problem, "1", "input") is None
  assert cruxeval.program(problem, "f(1)", "output") is None
  assert cruxeval.program(problem, "f( 1)", "output") == (
      "def f(x): return x\nassert 1 == f( 1)")


def _rows(*outcomes):
  return [{"task_id": name, "sample": 0, "passed": result == "passed",
           "result": result} for name, result in outcomes]


def test_counts_of_skipped_and_missing():
  rows = _rows(("a", "passed"), ("a", scoring.SKIPPED), ("b", "failed: x"),
               ("b", scoring.SKIPPED), ("c", "passed"), ("c", "passed"))

  assert scoring.counts(rows) == [(2, 1), (2, 0), (2, 2)]
  assert scoring.counts(rows, ["d"]) == [(2, 1), (2, 0), (2, 2), (2, 0)]
  # CRUXEval's own: n without the skipped, unless nothing passed.
  assert scoring.counts(rows, leave_out_skipped=True) == [
      (1, 1), (2, 0), (2, 2)]


SAMPLES = [
    scoring.Sample("a", 0, "x = 1"), scoring.Sample("b", 0, "assert False"),
    scoring.Sample("b", 1, None), scoring.Sample("c", 0, "x = 2")]


class CountingCage:
  """A cage that says what it was asked to run."""

  limits = cage.Limits()

  def __init__(self):
    self.programs = []

  def run(self, program):
    self.programs.append(program)
    return cage.Outcome("assert" not in program, "passed", 0.1)


def test_keeps_results_in_order(caged, tmp_path):
  path = tmp_path / "results.jsonl"

  rows = scoring.run(SAMPLES, caged, path, workers=2)

  assert [(r["task_id"], r["sample"], r["passed"]) for r in rows] == [
      ("a", 0, True), ("b", 0, False), ("b", 1, False), ("c", 0, True)]
  assert [r["result"] for r in rows] == [
      "passed", "failed: AssertionError:", scoring.SKIPPED, "passed"]
  assert [json.loads(line) for line in path.read_text().splitlines()] == rows


@pytest.mark.parametrize("kept", range(5))
@pytest.mark.parametrize("torn", ["", '{"task_id": "c", "sam'])
def test_goes_on_where_it_was(tmp_path, kept, torn):
  path, counting = tmp_path / "results.jsonl", CountingCage()
  whole = scoring.run(SAMPLES, counting, path, workers=1)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[::-1][:kept]) + torn)
  again = CountingCage()

  assert scoring.run(SAMPLES, again, path, workers=1) == whole
  assert path.read_text() == "".join(lines)
  left = {s.program for s in SAMPLES[:4 - kept]} - {None}
  assert set(again.programs) == left and len(again.programs) == len(left)


def test_refuses_the_results_of_other_programs(tmp_path):
  path = tmp_path / "results.jsonl"
  scoring.run(SAMPLES, CountingCage(), path)
  before = path.read_bytes()

  with pytest.raises(ValueError, match="results of other predictions"):
    scoring.run(SAMPLES[:3], CountingCage(), path)
  limited = CountingCage()
  limited.limits = cage.Limits(seconds=1)
  with pytest.raises(ValueError, match="results of other predictions"):
    scoring.run(SAMPLES, limited, path)
  assert path.read_bytes() == before


def test_refuses_a_second_writer(tmp_path):
  path = tmp_path / "results.jsonl"

  with scoring._locked(path), pytest.raises(ValueError, match="another proc"):
    scoring.run(SAMPLES, CountingCage(), path)


@pytest.fixture
def files(tmp_path):
  """A problem file and predictions of two problems, two samples each."""
  problems = tmp_path / "problems.jsonl"
  problems.write_text("".join(json.dumps({
      "task_id": f"MBPP/{n}", "prompt": "\n\ndef f(x):\n", "entry_point": "f",
      "test": f"def check(g):\n    assert g(1) == {n}\n"}) + "\n"
      for n in (1, 2)))
  predictions = tmp_path / "mbxp_solutions.json"
  predictions.write_text("".join(json.dumps({
      "task_id": f"MBPP/{n}", "language": "python", "data_type": "MBPP",
      "completion": f"  return {value}"}) + "\n"
      for n, value in ((1, "x"), (1, 2), (2, 2), (2, 2))))
  return problems, predictions


def _score(problems, predictions, *flags):
  score_mbpp.main([
      "--execute_generated_code", f"--problem_file={problems}",
      f"--predictions={predictions}", *flags])


def test_command_for_mbpp(files, tmp_path, capsys):
  _score(*files, "--k", "1,2,5")

  out = capsys.readouterr().out
  summary = json.loads((tmp_path / "mbxp_solutions_summary.json").read_text())
  assert "| pass@1 | 75.00 |" in out and "| pass@2 | 100.00 |" in out
  assert "the cage: limits, " in out
  assert {name: figure["value"] for name, figure
          in summary["pass_at_k"].items()} == {"pass@1": 0.75, "pass@2": 1.0}
  assert (summary["problems"], summary["samples"], summary["passed"]) == (
      2, 4, 3)
  assert "seccomp" in summary["cage"] or "namespaces" in summary["cage"]
  rows = [json.loads(line) for line in
          (tmp_path / "mbxp_solutions_results.jsonl").open()]
  assert [row["passed"] for row in rows] == [True, False, True, True]


def test_command_for_cruxeval(tmp_path, capsys):
  problems = tmp_path / "cruxeval.jsonl"
  problems.write_text("".join(json.dumps({
      "id": f"sample_{n}", "code": "def f(x):\n    return x + 1",
      "input": str(n), "output": str(n + 1)}) + "\n" for n in range(3)))
  predictions = tmp_path / "output.json"
  predictions.write_text(json.dumps(
      {"sample_0": ["f(0)", "0"], "sample_1": ["f(0)", "f(2)"]}))
  flags = ["--execute_generated_code", f"--predictions={predictions}",
           f"--problem_file={problems}", "--mode=input"]

  score_cruxeval.main(flags)
  assert "| pass@1 | 25.00 |" in capsys.readouterr().out
  score_cruxeval.main([*flags, "--skipped=leave_out"])
  out = capsys.readouterr().out
  assert "| pass@1 | 50.00 |" in out and "| pass@5 | 0.00 |" in out
  assert "1 of 3 problems have no prediction and do not count" in out
  summary = json.loads((tmp_path / "output_summary.json").read_text())
  assert summary["without_prediction"] == ["sample_2"]
  assert (summary["problems"], summary["missing"]) == (2, "leave_out")
  score_cruxeval.main([*flags, "--missing=wrong"])
  assert "| pass@1 | 16.67 |" in capsys.readouterr().out


def test_command_survives_its_own_death(files, tmp_path):
  problems, predictions = files
  sleeping = {"task_id": "MBPP/2", "completion": "  import time\n"
              "  time.sleep(2)\n  return 2"}
  with predictions.open("a") as file:
    file.write(json.dumps(sleeping) + "\n")
  command = [
      sys.executable, "-m", "prompt_tuning.scripts.score_mbpp",
      "--execute_generated_code", "--workers=1",
      f"--problem_file={problems}", f"--predictions={predictions}"]
  environment = os.environ | {
      "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
  results = tmp_path / "mbxp_solutions_results.jsonl"
  running = subprocess.Popen(
      command, env=environment, stdout=subprocess.DEVNULL)
  end = time.monotonic() + 60
  while time.monotonic() < end and (
      not results.exists() or results.read_bytes().count(b"\n") < 4):
    time.sleep(0.01)
  running.send_signal(signal.SIGKILL)
  running.wait()
  before = results.read_bytes()

  done = subprocess.run(command, env=environment, capture_output=True)

  assert before.count(b"\n") == 4 and done.returncode == 0
  assert results.read_bytes().startswith(before)
  assert b"4 of 5 samples passed" in done.stdout


def _replace(text, old, new):
  assert old in text
  return text.replace(old, new, 1)


@pytest.mark.parametrize("which, change, sentence", [
    (0, lambda t: _replace(t, '"test"', '"tests"'),
     "line 1 has no text under 'test'"),
    (0, lambda t: t + t, "2 problems ('MBPP/1', 'MBPP/2') more than once"),
    (0, lambda t: "", "is empty"),
    (0, lambda t: t + "{", "line 3 is not JSON"),
    (0, lambda t: t + "[]", "line 3 is not a JSON object"),
    (0, lambda t: t.splitlines()[0],
     "predictions for 1 problem ('MBPP/2') that the problems lack"),
    (1, lambda t: "", "is empty"),
    (1, lambda t: t.splitlines()[0],
     "no prediction for 1 problem ('MBPP/2')"),
    (1, lambda t: _replace(t, '"completion"', '"text"'),
     "line 1 has no text under 'completion'"),
    (1, lambda t: _replace(t, '"python"', '"java"'), "only Python"),
    (1, lambda t: _replace(t, "return", "return \udcff"), "cannot read"),
    (1, lambda t: "[" * 100_000, "is not JSON"),
    (1, None, "cannot read"),
])
def test_bad_files_end_in_one_sentence(
    files, tmp_path, capsys, which, change, sentence):
  path = files[which]
  if change is None:
    path.unlink()
  else:
    text = change(path.read_text())
    path.write_bytes(text.encode(errors="surrogateescape"))
  before = sorted(tmp_path.iterdir())

  with pytest.raises(SystemExit) as leaving:
    _score(*files)

  err = capsys.readouterr().err
  assert leaving.value.code == 2
  assert err.startswith("error: ") and err.count("\n") == 1
  assert sentence in err
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("flags, sentence", [
    (["--workers=0"], "--workers 0"), (["--timeout=0"], "seconds"),
    (["--memory_mib=-1"], "memory_bytes"), (["--seed=-1"], "--seed"),
    (["--timeout=nan"], "seconds"), (["--memory_mib=9"], "interpreter")])
def test_bad_flags_end_in_one_sentence(
    files, tmp_path, capsys, flags, sentence):
  before = sorted(tmp_path.iterdir())

  with pytest.raises(SystemExit) as leaving:
    _score(*files, *flags)

  assert leaving.value.code == 2
  assert sentence in capsys.readouterr().err
  assert sorted(tmp_path.iterdir()) == before


def test_command_asks_for_the_word(files, tmp_path, capsys):
  problems, predictions = files
  before = sorted(tmp_path.iterdir())

  with pytest.raises(SystemExit) as leaving:
    score_mbpp.main([
        f"--problem_file={problems}", f"--predictions={predictions}"])

  assert leaving.value.code == 2
  assert "--execute_generated_code" in capsys.readouterr().err
  assert sorted(tmp_path.iterdir()) == before


def test_never_writes_over_the_predictions(files, capsys):
  before = files[1].read_bytes()

  with pytest.raises(SystemExit) as leaving:
    _score(*files, f"--output={files[1]}")

  assert leaving.value.code == 2
  assert files[1].read_bytes() == before


@pytest.mark.parametrize("text, sentence", [
    ('{"a": ["x"], "a": ["y"]}', "1 problem ('a') more than once"),
    ('{"a": []}', "1 problem ('a') without a sample"),
    ('{"a": "x"}', "no list of texts under 'a'"),
    ('{"a": {"b": "x"}}', "no list of texts under 'a'"),
    ('{"a": [1]}', "no list of texts under 'a'"),
    ('{"b": ["x"]}', "1 problem ('b') that the problems lack"),
    ("[]", "not a JSON object"), ("{}", "no predictions"),
    ("", "is not JSON"), ("{", "is not JSON")])
def test_bad_samples_by_problem(tmp_path, text, sentence):
  path = tmp_path / "output.json"
  path.write_text(text)

  with pytest.raises(ValueError) as raised:
    prediction_files.samples_by_problem(path, {"a": {}})

  assert sentence in str(raised.value)
