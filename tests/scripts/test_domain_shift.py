"""The table of several evaluations. Oracle: the written-out mean and spread."""

import json

import pytest

from prompt_tuning.scripts import domain_shift


def write(folder, **tasks):
  """An evaluation's logs: of each task its records, the last one counting."""
  (folder / "inference_eval").mkdir(parents=True)
  for task, records in tasks.items():
    (folder / "inference_eval" / f"{task}-metrics.jsonl").write_text("".join(
        json.dumps({"step": step} | record) + "\n"
        for step, record in enumerate(records)))
  return str(folder)


def cells(text):
  return [[cell.strip() for cell in line.split("|")[1:-1]]
          for line in text.splitlines()]


def test_mean_and_spread_by_source(tmp_path, capsys):
  prompts = [
      write(tmp_path / f"prompt_{i}", squad=[{"f1": 1.0}, {"f1": f1}],
            race=[{"f1": 60.0, "em": em, "samples": "a text"}])
      for i, (f1, em) in enumerate([(94.0, 1.0), (95.0, 2.0), (96.5, 6.0)])]
  model = write(tmp_path / "model", squad=[{"f1": 94.94}])
  domain_shift.main([
      "--source", "model", model, "--source", "prompt tuning", *prompts])
  found = cells(capsys.readouterr().out)
  assert found[0] == ["task", "model", "prompt tuning"]
  # (94 + 95 + 96.5) / 3 = 95.167; sqrt((1.167² + 0.167² + 1.333²) / 2) = 1.258
  assert sorted(found[2:]) == [
      ["race em", "", "3.0 ± 2.6"], ["race f1", "", "60.0 ± 0.0"],
      ["squad f1", "94.9", "95.2 ± 1.3"]]


def test_bad_input(tmp_path, capsys):
  one = write(tmp_path / "one", squad=[{"f1": 1.0}], race=[{"f1": 2.0}])
  other = write(tmp_path / "other", squad=[{"f1": 1.0}])
  for arguments, words in (
      (["--source", "a"], "names no folder"),
      (["--source", "a", one, "--source", "a", other], "is there twice"),
      (["--source", "a", one, str(tmp_path / "none")], "has no evaluation"),
      (["--source", "a", one, other], "has no result of 'race f1'")):
    with pytest.raises(SystemExit) as leaving:
      domain_shift.main(arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said
