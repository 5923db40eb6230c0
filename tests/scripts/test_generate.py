"""From tasks of code and tables to files, with a tiny random Llama.

Oracles: the same model decoded by `infer`, one example at a time; what the
benchmarks' own programs read.
"""

import json
import re
import time

import numpy as np
import pytest

from prompt_tuning.data import table_tasks, token_ids
from prompt_tuning.scripts import score_text

CONFIGS = "prompt_tuning/configs"
MODEL = "models/causal_lm_from_checkpoint"


@pytest.fixture(scope="module")
def flags(tiny_llama, code_data):
  """Flags of a command from gin files of the package and macros."""
  def make(*files, task="mbpp", **macros):
    if task.startswith("nlg"):
      data = {"NLG_FOLDER": str(code_data)}
    else:
      name = task.partition("_")[0]
      data = {f"{name.upper()}_FILE": str(code_data / f"{name}.jsonl"),
              "TRAIN_ROWS": 8}
    macros = data | {"INITIAL_CHECKPOINT_PATH": str(tiny_llama),
                     "BATCH_SIZE": 8} | macros
    return [*(f"--gin_file={CONFIGS}/{name}.gin" for name in files),
            *(f"--gin.{name}={value!r}" for name, value in macros.items())]

  return make


@pytest.fixture(scope="module")
def trained(command, flags, tmp_path_factory):
  """The folder of a run of MBPP."""
  folder = tmp_path_factory.mktemp("run")
  outcome = command("train", *flags(
      f"{MODEL}_prompt", "runs/mbpp", TRAIN_EPOCHS=2, MODEL_DIR=str(folder),
      TASK_FEATURE_LENGTHS={"inputs": 32, "targets": 16}))
  assert outcome.status == 0, outcome.err
  return folder, outcome


def test_mbpp_trains_by_gin(trained):
  folder, outcome = trained
  rows = [json.loads(line) for line in open(folder / "train.jsonl")]
  assert (folder / "prompt.npy").exists()
  assert np.load(folder / "prompt.npy").shape == (10, 8)
  assert any("loss" in json.dumps(row) for row in rows)


LENGTHS = {"inputs": 32, "targets": 16}


@pytest.fixture(scope="module")
def generate(command, flags, trained, tmp_path_factory):
  """Runs the command with the trained prompt."""
  def run(task="mbpp", decoding="mbpp", **macros):
    macros = {
        "GENERATE_OUTPUT_DIR": str(tmp_path_factory.mktemp("generated")),
        "PROMPT_FILE": str(trained[0] / "prompt.npy"), "PROMPT_LENGTH": 10,
        "TASK_FEATURE_LENGTHS": LENGTHS, "BATCH_SIZE": 8} | macros
    return command("generate", *flags(
        f"{MODEL}_prompt", f"models/decoding/{decoding}", f"tasks/{task}",
        "runs/generate", task=task, **macros))

  return run


def texts_of(outcome):
  assert outcome.status == 0, outcome.err
  rows = [json.loads(line) for line in open(outcome.result[0])]
  return {row["index"]: row["texts"] for row in rows}


def test_greedy_texts_are_those_of_infer(generate, trained, flags, command):
  """Sorted, batched, cut at stops: as `infer` has them one at a time."""
  found = texts_of(generate(decoding="greedy"))
  infer = command("infer", *flags(
      f"{MODEL}_prompt", "models/decoding/greedy", "tasks/mbpp",
      "runs/prompt_infer", PROMPT_FILE=str(trained[0] / "prompt.npy"),
      PROMPT_LENGTH=10, EVAL_SPLIT="test", TASK_FEATURE_LENGTHS=LENGTHS,
      INFER_OUTPUT_DIR=str(trained[0] / "infer")))
  assert infer.status == 0, infer.err
  rows = [json.loads(line) for line in open(infer.result[0])]
  assert found == {i: [row["prediction"]] for i, row in enumerate(rows)}
  assert any(texts[0] for texts in found.values())


@pytest.fixture(scope="module")
def sampled(generate):
  """Two samples of all problems, at a temperature that differs."""
  return generate(NUM_SAMPLES=2, TEMPERATURE=1.5)


def test_mbpp_writes_what_mxeval_reads(sampled):
  texts = texts_of(sampled)
  names = {path.rsplit("/", 1)[1]: path for path in sampled.result}
  rows = [json.loads(line) for line in open(names["mbxp_solutions.json"])]
  assert [row["task_id"] for row in rows] == [
      f"MBPP/{i}" for i in range(8, 20) for _ in range(2)]
  assert [row["completion"] for row in rows] == sum(
      (texts[i] for i in range(12)), [])
  assert len({row["completion"] for row in rows}) > 12


def test_a_sample_does_not_depend_on_its_batch(generate, sampled):
  """A part of the problems, in other batches, one sample of each."""
  whole = texts_of(sampled)
  part = texts_of(generate(TEMPERATURE=1.5, NUM_EXAMPLES=3, BATCH_SIZE=16))
  assert part == {i: whole[i][:1] for i in (0, 4, 8)}
  other = texts_of(generate(TEMPERATURE=1.5, NUM_EXAMPLES=3, RANDOM_SEED=1))
  assert other != part


def test_an_interrupted_run_goes_on(generate, sampled, tmp_path):
  whole = open(sampled.result[0], "rb").read()
  facts = open(sampled.result[1], "rb").read()
  kept = whole.splitlines(keepends=True)
  path = tmp_path / "mbpp-generations.jsonl"
  path.write_bytes(b"".join(kept[:8]) + kept[8][:9])  # torn while written
  (tmp_path / "mbpp-generations.json").write_bytes(facts)
  again = generate(
      NUM_SAMPLES=2, TEMPERATURE=1.5, GENERATE_OUTPUT_DIR=str(tmp_path))
  assert again.status == 0 and "4 of 12 examples to go" in again.out
  assert path.read_bytes() == whole
  other = generate(
      NUM_SAMPLES=2, TEMPERATURE=1.0, GENERATE_OUTPUT_DIR=str(tmp_path))
  assert other.status == 2 and "another decoding" in other.err


def test_stops_cut_what_is_generated(generate, sampled):
  """A random model says anything: a letter is as good as a word."""
  whole = texts_of(sampled)
  stop = next(text[1] for texts in whole.values() for text in texts
              if text[1:2].isascii() and len(text) > 2)
  found = texts_of(generate(NUM_SAMPLES=2, TEMPERATURE=1.5, STOPS=[stop]))
  assert found == {
      i: [text.split(stop)[0] for text in texts]
      for i, texts in whole.items()}
  assert found != whole


@pytest.mark.parametrize("kind", ["input", "output"])
def test_cruxeval(generate, kind):
  outcome = generate(
      f"cruxeval_{kind}", "cruxeval", NUM_EXAMPLES=2,
      TASK_FEATURE_LENGTHS={"inputs": 96, "targets": 8})
  texts_of(outcome)
  names = {path.rsplit("/", 1)[1]: path for path in outcome.result}
  raw = json.load(open(names["output_raw.json"]))
  assert list(raw) == ["sample_8", "sample_14"]
  assert all("[ANSWER]" in text for texts in raw.values() for text in texts)
  assert json.load(open(names["references.json"]))["sample_8"] == [
      "def f(x):\n    return x + 8", "1", "9"]


@pytest.fixture(scope="module")
def beams(generate):
  return generate("nlg_webnlg", "nlg", NUM_BEAMS=2)


def test_tables_write_what_their_measures_read(beams):
  """The best beam of each context; its references; seen ones apart."""
  texts = texts_of(beams)
  assert {len(several) for several in texts.values()} == {2}
  folder = beams.result[0].rsplit("/", 1)[0]

  def lines(name):
    return open(f"{folder}/{name}", encoding="utf-8").read().split("\n")[:-1]

  assert lines("context.txt") == [f"x : is : {i}" for i in range(10)]
  assert lines("references_all/reference1") == [
      f"x is {2 * i + 1} ." for i in range(10)]
  assert lines("references_seen/reference0") == [
      f"x is {2 * i} ." for i in range(3)]
  assert lines("hypothesis_all") == [
      table_tasks.spaced(table_tasks.hypothesis(texts[i][0]))
      for i in range(10)]


def test_an_interrupted_search_goes_on(generate, beams, tmp_path):
  """Of tables by beams. Oracle: every file that the unbroken run wrote."""
  names = [path.rsplit("/", 1)[1] for path in beams.result[:2]]
  whole, facts = (open(path, "rb").read() for path in beams.result[:2])
  kept = whole.splitlines(keepends=True)
  (tmp_path / names[0]).write_bytes(kept[0] + kept[1] + kept[2][:7])
  (tmp_path / names[1]).write_bytes(facts)
  again = generate("nlg_webnlg", "nlg", NUM_BEAMS=2,
                   GENERATE_OUTPUT_DIR=str(tmp_path))
  assert again.status == 0, again.err
  assert "8 of 10 examples to go" in again.out
  folder = beams.result[0].rsplit("/", 1)[0]
  assert len(again.result) == len(beams.result) > 20
  for path in again.result:
    other = path.replace(str(tmp_path), folder)
    assert open(path, "rb").read() == open(other, "rb").read(), path


@pytest.mark.slow
def test_a_killed_search_goes_on(process, flags, tmp_path):
  """Oracle: the files of a run that nobody killed."""
  (tmp_path / "test_formatted.jsonl").write_text("".join(
      json.dumps({"context": f"x : is : {i}", "completion": f"x is {i} ."})
      + "\n" for i in range(300)))

  def start(folder):
    return process("scripts.generate", *flags(
        MODEL, "models/decoding/nlg", "tasks/nlg_dart", "runs/generate",
        task="nlg_dart", NLG_FOLDER=str(tmp_path), NUM_BEAMS=2, BATCH_SIZE=1,
        PROMPT_FILE=None, TASK_FEATURE_LENGTHS=LENGTHS,
        GENERATE_OUTPUT_DIR=str(tmp_path / folder)))

  texts = tmp_path / "out" / "nlg_dart-generations.jsonl"
  child = start("out")
  while child.poll() is None and not (
      texts.exists() and texts.stat().st_size):
    time.sleep(0.01)
  child.kill()
  child.wait()
  done = texts.read_bytes().count(b"\n")
  assert 0 < done < 300
  again, unbroken = start("out"), start("unbroken")
  assert f"{300 - done} of 300 examples to go" in again.communicate()[0]
  unbroken.communicate()
  assert again.returncode == unbroken.returncode == 0
  files = [path.relative_to(tmp_path / "unbroken")
           for path in (tmp_path / "unbroken").rglob("*")
           if path.is_file() and "cache" not in path.parts]
  assert len(files) == 2 + 2 + 1 + 6
  for file in files:
    assert (tmp_path / "out" / file).read_bytes() == (
        tmp_path / "unbroken" / file).read_bytes(), file


def test_more_beams_than_tokens_is_one_sentence(generate):
  outcome = generate("nlg_webnlg", "nlg", NUM_BEAMS=4000)
  assert outcome.status == 2
  [line] = outcome.err.splitlines()
  assert re.search(r"num_beams is 4000 and the vocabulary has \d+", line)


def test_one_command_scores_seen_and_unseen_tables(
    beams, monkeypatch, tmp_path):
  """Oracle: the scores of the files of one kind by themselves."""
  monkeypatch.chdir(beams.result[0].rsplit("/", 1)[0])

  def scores(kind, *arguments):
    report = tmp_path / f"{kind}.json"
    score_text.main([
        "--outputs", f"hypothesis_{kind}", "--references",
        *(f"references_{kind}/reference{i}" for i in range(3)),
        "--metrics=ter_webnlg,meteor", "--json", str(report), *arguments])
    return json.loads(report.read_text())["splits"]

  found = scores("all", "--categories", "categories.txt")
  assert [found[name]["outputs"] for name in ("all", "seen", "unseen")] == [
      10, 3, 7]
  for kind in ("seen", "unseen"):
    assert found[kind] == scores(kind)["all"]
  assert found["seen"]["scores"] != found["unseen"]["scores"]


def test_a_missing_file_and_too_long_texts_are_one_sentence(
    generate, tmp_path):
  missing = generate(MBPP_FILE=str(tmp_path / "none.jsonl"))
  assert missing.status == 2
  assert "mbpp_release_v1.jsonl" in missing.err
  long = generate(TASK_FEATURE_LENGTHS={"inputs": 250, "targets": 16})
  assert long.status == 2 and "256" in long.err
  assert len(long.err.strip().splitlines()) == 1


def test_examples_are_spread_over_the_split():
  assert token_ids.spread(10, 4).tolist() == [0, 2, 5, 7]
  for wanted in (3, 4, None):
    assert token_ids.spread(3, wanted).tolist() == [0, 1, 2]
