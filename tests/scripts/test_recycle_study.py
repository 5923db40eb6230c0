"""A study of recycling. Oracle: bases whose embeddings are known maps apart."""

import json
import os
import shlex

import numpy as np
import pytest

from prompt_tuning import command_line, pretrained
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import runs
from prompt_tuning.formats import card, npy, t5x
from prompt_tuning.scripts import recycle_study
from prompt_tuning.transfer import recycling

DRAW = np.random.default_rng(2)
TABLES = {"Seed 0": DRAW.normal(size=(60, 6)).astype(np.float32)}
MAP = DRAW.normal(size=(6, 4)).astype(np.float32)
TABLES["Large"] = TABLES["Seed 0"] @ MAP
PROMPTS = {step: DRAW.normal(size=(3, 6)).astype(np.float32)
           for step in (20, 100)}


@pytest.fixture
def study(tmp_path):
  """Writes a file like the original's; gives a function that runs it."""
  for name, table in TABLES.items():
    t5x.write(tmp_path / name.replace(" ", "_") / "checkpoint_5",
              base_lib.EMBEDDING, table, 5)
  for step, prompt in PROMPTS.items():
    runs.save_numpy(
        tmp_path / "run", step, {"encoder/prompt/prompt/prompt": prompt})
  (tmp_path / "words.json").write_text(
      json.dumps({str(i): "x" for i in range(50, 10, -1)}))
  config = {
      "root_dir": str(tmp_path / "out"), "dataset": "sst2",
      "task_name": "pr:sst2", "clobber": False, "steps": None,
      "combination_skips": [["Large", "Seed 0"]],
      "load_embeddings": {"default": {
          "word_list_path": str(tmp_path / "words.json"), "num_words": 30,
          "word_offset": 2}},
      "recycling_methods": {"tf-lstsq": {}, "linear-combination": {}},
      "pretrained": {
          name: str(tmp_path / name.replace(" ", "_") / "checkpoint_5")
          for name in TABLES},
      "prompts": {"Seed 0": {"class init": {"run 1": str(tmp_path / "run")}},
                  "Large": {"class init": {}}}}

  def run(**changes):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(config | changes))
    recycle_study.main(["--config", str(path)])

  return run


def output(tmp_path, method="tf-lstsq", step=20):
  return (tmp_path / "out" / method / "sst2/class_init/run_1/recycled-prompt"
          / f"recycled_from_Seed_0_at_{step}_to_Large")


def cells(text):
  return [[cell.strip() for cell in line.split("|")[1:-1]]
          for line in text.splitlines()]


def test_every_prompt_goes_to_every_other_model(study, tmp_path, capsys):
  study()
  found = cells(capsys.readouterr().out)
  assert found[0] == ["method", "init", "run", "source", "target", "step",
                      "unexplained"]
  assert [row[:6] for row in found[2:]] == [
      [method, "class init", "run 1", "Seed 0", "Large", str(step)]
      for method in ("tf-lstsq", "linear-combination") for step in (20, 100)]
  assert all(float(row[6]) < 1e-9 for row in found[2:])
  fingerprint = card.fingerprint(TABLES["Large"])
  for method in ("tf-lstsq", "linear-combination"):
    for step, prompt in PROMPTS.items():
      path = output(tmp_path, method, step)
      np.testing.assert_allclose(
          npy.read(path), prompt @ MAP, rtol=1e-4, atol=1e-5)
      known = card.check(path, fingerprint, "Large")
      assert known.base_model == "Large/checkpoint_5"
      assert known.settings["source_model"] == "Seed_0/checkpoint_5"


def test_it_goes_on_where_it_was(study, tmp_path, capsys, monkeypatch):
  """Only what is missing, changed or damaged is made, and no other map."""
  study()
  first, second = output(tmp_path, step=20), output(tmp_path, step=100)
  os.remove(second)
  before = {path: path.stat().st_mtime_ns
            for path in (first, output(tmp_path, "linear-combination"))}
  learned = []
  learn = recycling.learn
  monkeypatch.setattr(recycling, "learn", lambda *arguments, **options: (
      learned.append(arguments[2]), learn(*arguments, **options))[1])
  capsys.readouterr()
  study()
  assert "tf-lstsq: Seed 0 to Large, 0.00% of" in capsys.readouterr().err
  assert learned == ["v2v-lin"] and second.exists()
  assert before == {path: path.stat().st_mtime_ns for path in before}
  study()
  assert learned == ["v2v-lin"]
  study(load_embeddings={"default": {"num_words": 40, "word_offset": 0}})
  assert learned == ["v2v-lin", "v2v-lin", "lin-comb"]
  study(load_embeddings={"default": {"num_words": 40, "word_offset": 0}},
        clobber=True, steps=[20])
  assert learned[3:] == ["v2v-lin", "lin-comb"]


def test_the_originals_tables(study, tmp_path, capsys):
  study()
  lines = (tmp_path / "out/cli_args-sst2.txt").read_text().splitlines()
  assert len(lines) == 4
  flags = shlex.split(lines[0])
  folder = json.loads(flags[3].partition("=")[2].replace("'", '"'))
  assert flags == [
      f"--gin.CHECKPOINT_PATH='{tmp_path / 'Large/checkpoint_5'}'",
      f"--gin.PROMPT_FILE='{output(tmp_path)}'",
      "--gin.MIXTURE_OR_TASK_NAME='pr:sst2'",
      f"--gin.EVAL_OUTPUT_DIR='{folder}'"]
  for place, step, value in ((folder, 0, 81.5), (tmp_path / "run", 20, 92.25)):
    os.makedirs(os.path.join(place, "inference_eval"))
    with open(os.path.join(
        place, "inference_eval/pr:sst2-metrics.jsonl"), "w") as file:
      file.write(json.dumps({"step": step, "accuracy": value}) + "\n")
  capsys.readouterr()
  study()
  assert cells(capsys.readouterr().out)[2][-1] == "81.5"
  assert (tmp_path / "out/recycling-sst2.tsv").read_text() == (
      "Recycler\tInit\tRun\tSource Model\tTarget Model\tStep\tAcc\n"
      "tf-lstsq\tclass init\trun 1\tSeed 0\tLarge\t20\t81.5\n")
  assert (tmp_path / "out/training-sst2.tsv").read_text() == (
      "Model\tInit\tRun\tStep\tAcc\nSeed 0\tclass init\trun 1\t20\t92.25\n")


def test_wayward_prompts_and_networks(study, tmp_path, capsys):
  """Wayward maps see the pieces of one text; a prompt's file is a run, too."""
  vocabulary = str(pretrained.vocabulary_path())
  for name in TABLES:  # a row for each piece
    table = np.resize(TABLES[name], (4096, TABLES[name].shape[1]))
    t5x.write(tmp_path / f"wide_{name}" / "checkpoint_5", base_lib.EMBEDDING,
              table, 5)
  npy.write(tmp_path / "way.npy", PROMPTS[20])
  study(
      pretrained={name: str(tmp_path / f"wide_{name}" / "checkpoint_5")
                  for name in TABLES},
      prompts={"Seed 0": {"wayward": {"run 1": str(tmp_path / "way.npy")}}},
      load_embeddings={"from_string": {
          "vocab_file": vocabulary, "variable_path": base_lib.EMBEDDING,
          "string": "Sort the array in place and return the new indices."}},
      recycling_methods={"jax-nn": {
          "__init__": {"hidden_scale": 8},
          "fit": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01}},
          "v2v-lin": {}})
  rows = cells(capsys.readouterr().out)[2:]
  assert [row[0] for row in rows] == ["jax-nn", "v2v-lin"]
  assert float(rows[0][6]) > 0.01 > float(rows[1][6])
  path = (tmp_path / "out/v2v-lin/sst2/wayward/run_1/recycled-prompt"
          / "recycled_from_Seed_0_at_0_to_Large")
  np.testing.assert_allclose(
      npy.read(path), PROMPTS[20] @ MAP, rtol=1e-3, atol=1e-4)


def test_bad_input(study, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  for changes, words in (
      ({"dataset": ""}, "has no 'dataset'"),
      ({"recycling_methods": {"magic": {}}}, "the recycling method 'magic'"),
      ({"recycling_methods": {"jax-nn": {"fit": {"steps": 3}}}},
       "'jax-nn' are not all known"),
      ({"prompts": {"XL": {}}}, "prompts of 'XL'"),
      ({"prompts": {"Seed 0": {"wayward": {}}}}, "no 'from_string'"),
      ({"prompts": {"Seed 0": {"rand": {"run": str(tmp_path / "empty")}}}},
       "is neither a .npy file"),
      ({"steps": [3]}, "0 prompts of step 3, not 1"),
      ({"pretrained": {"Seed 0": str(tmp_path), "Large": str(tmp_path)}},
       "is no checkpoint"),
      ({"load_embeddings": {"default": {"num_words": 90}}},
       "want words of 60")):
    with pytest.raises(SystemExit) as leaving:
      study(**changes)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said, said


def test_its_gin_flags_are_understood(study, tmp_path, clean_gin):
  """Oracle: our own parser, which refuses what nothing uses."""
  study()
  lines = (tmp_path / "out/cli_args-sst2.txt").read_text().splitlines()
  configs = command_line.PACKAGE / "configs"
  command_line.configure([
      f"--gin_file={configs}/models/t5_1_1_small_prompt.gin",
      f"--gin_file={configs}/runs/prompt_eval.gin",
      "--gin.VOCABULARY_FILE='spiece.model'",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
      *shlex.split(lines[0])])
  assert command_line.macro("PROMPT_FILE") == str(output(tmp_path))
