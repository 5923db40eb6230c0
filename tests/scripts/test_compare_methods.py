"""Three methods on code and on labels, with a tiny random Llama.

Oracles: `eval` on what a cell trained; the right answers of small problems;
numpy for means and deviations.
"""

import hashlib
import json
import os
import re

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.checkpoints import base
from prompt_tuning.compare import benchmarks, cells, entries, tables
from prompt_tuning.data import code_tasks
from prompt_tuning.metrics import (
  bleu_mteval13a,
  cider,
  meteor,
  nist,
  rouge_l,
)

CONFIGS = "prompt_tuning/configs"

# What lies in a gin file for a comparison.
GIN = """
include 'prompt_tuning/configs/runs/compare.gin'
METHODS = {{
    'frozen': ['models/causal_lm_from_checkpoint.gin'],
    'prompt': ['models/causal_lm_from_checkpoint_prompt.gin',
               {{'PROMPT_LENGTH': 4}}],
    'LoRA': ['models/causal_lm_from_checkpoint.gin', 'prompts/lora.gin',
             {{'LORA_RANK': 2}}]}}
TASKS = {{
    'labels': ['tasks/sst2_causal.gin', {{
        'TRAIN_FILE': {train!r}, 'VALIDATION_FILE': {dev!r},
        'LABELS': {{'0': ' a', '1': ' b'}},
        'TASK_FEATURE_LENGTHS': {{'inputs': 48, 'targets': 3}}}}],
    'code': ['models/decoding/cruxeval.gin', 'tasks/cruxeval_output.gin', {{
        'CRUXEVAL_FILE': {cruxeval!r}, 'TRAIN_ROWS': 8,
        'TEMPLATE': {template!r},
        'TASK_FEATURE_LENGTHS': {{'inputs': 48, 'targets': 8}}}}]}}
TRAIN_STEPS = 4
NUM_EXAMPLES = 6
EVAL_BATCH_SIZE = 8
"""


@pytest.fixture(scope="module")
def flags(tiny_llama, code_data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("compare")
  template = folder / "template.txt"
  template.write_text("{code} {input} [ANSWER]\n")
  (folder / "mine.gin").write_text(GIN.format(
      train=str(code_data / "train.tsv"), dev=str(code_data / "dev.tsv"),
      cruxeval=str(code_data / "cruxeval.jsonl"), template=str(template)))

  def make(**macros):
    macros = {"INITIAL_CHECKPOINT_PATH": str(tiny_llama),
              "COMPARE_OUTPUT_DIR": str(folder / "out"), **macros}
    return [f"--gin_file={folder / 'mine.gin'}", *(
        f"--gin.{name}={value!r}" for name, value in macros.items())]

  return make


@pytest.fixture(scope="module")
def compared(command, flags):
  """The folder of all methods on both tasks; labels with two seeds."""
  outcome = command("compare", *flags(EXECUTE_CODE=True, SEEDS=[0, 1]))
  assert outcome.status == 0, outcome.err
  return outcome


def folder_of(flags):
  return next(flag for flag in flags() if "OUTPUT_DIR" in flag).split("'")[1]


@pytest.mark.slow
def test_every_cell_has_its_figure(compared, flags):
  with open(os.path.join(folder_of(flags), tables.RECORDS)) as file:
    content = json.load(file)
  found = {(one["method"], one["task"]): one for one in content["summary"]}
  assert set(found) == {(method, task) for method in (
      "frozen", "prompt", "LoRA") for task in ("labels", "code")}
  assert found["prompt", "labels"]["trained parameters"] == 4 * 8
  # Queries 8 x 8 and values 8 x 8 of one layer, at rank 2.
  assert found["LoRA", "code"]["trained parameters"] == 2 * 2 * (8 + 8)
  assert found["frozen", "labels"]["trained parameters"] == 0
  for place, one in found.items():
    of_cells = [cell["value"] for cell in content["cells"] if (
        cell["method"], cell["task"]) == place]
    assert len(of_cells) == one["seeds"] == 2 - (
        place == ("frozen", "labels"))
    np.testing.assert_allclose(one["value"], np.mean(of_cells))
    assert one["problems"] == 6
  assert compared.result in compared.out
  picture = os.path.join(folder_of(flags), tables.PICTURE)
  assert open(picture, "rb").read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_a_cells_figure_is_that_of_eval(
    compared, flags, command, tiny_llama, code_data, tmp_path):
  cell = os.path.join(
      folder_of(flags), "task=labels", "method=prompt", "seed=1")
  outcome = command(
      "eval",
      f"--gin_file={CONFIGS}/models/causal_lm_from_checkpoint_prompt.gin",
      f"--gin_file={CONFIGS}/tasks/sst2_causal.gin",
      f"--gin_file={CONFIGS}/runs/prompt_eval.gin", *(
          f"--gin.{name}={value!r}" for name, value in {
              "INITIAL_CHECKPOINT_PATH": str(tiny_llama), "PROMPT_LENGTH": 4,
              "PROMPT_FILE": os.path.join(cell, "trained", "prompt.npy"),
              "TRAIN_FILE": str(code_data / "train.tsv"), "NUM_EXAMPLES": 6,
              "LABELS": {"0": " a", "1": " b"},
              "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 3},
              "VALIDATION_FILE": str(code_data / "dev.tsv"), "BATCH_SIZE": 8,
              "EVAL_OUTPUT_DIR": str(tmp_path)}.items()))
  assert outcome.status == 0, outcome.err
  with open(os.path.join(cell, "result.json")) as file:
    record = json.load(file)
  assert record["value"] == outcome.result["sst2/accuracy"]
  assert record["value"] == np.mean(record["values"])


@pytest.mark.slow
def test_what_is_done_is_not_done_again(compared, flags, command):
  """A cell whose figure is gone is made again of what it has trained."""
  cell = os.path.join(
      folder_of(flags), "task=code", "method=LoRA", "seed=0")
  with open(os.path.join(cell, "result.json")) as file:
    record = json.load(file)
  os.remove(os.path.join(cell, "result.json"))
  untouched = os.path.join(cell, "trained", "train.jsonl")
  before = os.stat(untouched).st_mtime_ns
  again = command("compare", *flags(EXECUTE_CODE=True, SEEDS=[0, 1]))
  assert again.status == 0, again.err
  assert os.stat(untouched).st_mtime_ns == before
  assert again.result == compared.result
  with open(os.path.join(cell, "result.json")) as file:
    assert json.load(file)["values"] == record["values"]
  other = command("compare", *flags(
      EXECUTE_CODE=True, SEEDS=[0, 1], TRAIN_STEPS=5))
  assert other.status == 2 and "other settings" in other.err


@pytest.mark.parametrize("method,left", [
    ("['models/causal_lm_from_checkpoint_prompt.gin', 'prompts/lopa.gin', "
     "{'PROMPT_LENGTH': 3, 'LOPA_RANK': 2}]", "prompt.safetensors"),
    ("['models/causal_lm_from_checkpoint.gin', 'prompts/full.gin', "
     "{'LEARNING_RATE': 1e-2, 'WARMUP_STEPS': 1}]", "hugging_face"),
    pytest.param(
        "['models/causal_lm_from_checkpoint.gin', 'prompts/top_layers.gin', "
        "{'TOP_LAYERS': 0, 'WARMUP_STEPS': 1}]", "hugging_face",
        marks=pytest.mark.slow),
    pytest.param(
        "['models/causal_lm_from_checkpoint.gin', 'prompts/adapter.gin', "
        "{'ADAPTER_WIDTH': 3}]", "done", marks=pytest.mark.slow),
    pytest.param(
        "['models/causal_lm_from_checkpoint.gin', 'prompts/prefix.gin', "
        "{'PREFIX_LENGTH': 2, 'PREFIX_HIDDEN_DIM': 4}, "
        "'prompts/prefix_from_words.gin', {'PREFIX_TEXT': 'def f(x)'}]", "done",
        marks=pytest.mark.slow),
])
def test_methods_of_other_kinds(flags, command, tmp_path, method, left):
  """What is judged is what was trained: the figures are those of the run."""
  folder = tmp_path / "out"
  outcome = command("compare", *flags(
      COMPARE_OUTPUT_DIR=str(folder), ONLY_TASKS=["labels"],
      TRAIN_STEPS={"labels": 3, "code": 4}),
      f"--gin.METHODS={{'it': {method}}}")
  assert outcome.status == 0, outcome.err
  [cell] = folder.glob("task=labels/method=it/seed=0")
  assert (cell / "trained" / left).exists()
  record = json.loads((cell / "result.json").read_text())
  assert record["trained parameters"] > 0
  assert record["value"] == np.mean(record["values"])
  *_, last = (cell / "trained" / "train.jsonl").read_text().splitlines()
  assert json.loads(last)["step"] == 3


@pytest.mark.slow
def test_a_prefix_is_put_to_use_from_its_run(
    flags, command, tiny_llama, tmp_path):
  """Its prompt.npy holds keys and values, which are no prompt.

  So trained_eval and trained_generate judge it. Oracles: its parameters,
  counted; the model's fingerprint without them.
  """
  outcome = command("compare", *flags(
      COMPARE_OUTPUT_DIR=str(tmp_path), EXECUTE_CODE=True),
      "--gin.METHODS={'it': ['models/causal_lm_from_checkpoint.gin', "
      "'prompts/prefix.gin', {'PREFIX_LENGTH': 2, 'PREFIX_HIDDEN_DIM': 4, "
      "'LEARNING_RATE': 0.1}]}")
  assert outcome.status == 0, outcome.err
  for task in ("labels", "code"):
    cell = tmp_path / f"task={task}" / "method=it" / "seed=0"
    record = json.loads((cell / "result.json").read_text())
    assert record["trained parameters"] == (
        2 * 8 + 8 * 4 + 4 + 4 * 16 + 16)
  [facts] = cell.glob("judged/*-generations.json")
  assert json.loads(facts.read_text())["model"] != hashlib.sha256(
      base.fingerprint(tiny_llama).encode()).hexdigest()


def test_every_metric_of_a_task_is_kept(flags, command, tmp_path):
  """Oracle: the metrics' functions on the predictions and the file's lines."""
  lines = [(f"name : {name}", f" {name} is x + {i} .")
           for name in ("f", "assert", "return") for i in range(2)]
  (tmp_path / "e2e.txt").write_text(
      "".join(f"{table}||{text}\n" for table, text in lines))
  outcome = command("compare", *flags(
      COMPARE_OUTPUT_DIR=str(tmp_path), ONLY_METHODS=["frozen"],
      TASKS={"E2E": [
          "models/decoding/greedy.gin", "tasks/e2e_five_metrics.gin", {
              "VALIDATION_FILE": str(tmp_path / "e2e.txt"),
              "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 8}}]}))
  assert outcome.status == 0, outcome.err
  cell = tmp_path / "task=E2E" / "method=frozen" / "seed=0"
  record = json.loads((cell / "result.json").read_text())
  [file] = cell.glob("judged/inference_eval/e2e-0*.jsonl")
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  references = [[text.strip() for table, text in lines
                 if f"{table}\nText:" == row["input"]] for row in rows]
  assert list(map(len, references)) == [2, 2, 2]
  expected = {}
  for metric in (bleu_mteval13a.bleu_mteval13a, nist.nist, meteor.meteor,
                 rouge_l.rouge_l, cider.cider):
    expected |= metric(references, [row["prediction"] for row in rows])
  found = {record["metric"]: record["value"], **record["other metrics"]}
  assert found == pytest.approx(expected)
  assert list(found) == list(expected)
  header = outcome.result.splitlines()[0]
  assert re.findall(r"E2E \((\w+)\)", header) == list(expected)


def test_code_runs_only_with_the_word(flags, command, tmp_path):
  outcome = command("compare", *flags(COMPARE_OUTPUT_DIR=str(tmp_path)))
  assert outcome.status == 2 and "EXECUTE_CODE=True" in outcome.err
  assert not list(tmp_path.glob("task=*"))
  outcome = command("compare", *flags(
      COMPARE_OUTPUT_DIR=str(tmp_path), ONLY_TASKS=["lables"]))
  assert outcome.status == 2 and "ONLY_TASKS has 'lables'" in outcome.err


@pytest.fixture
def generations(tmp_path):
  def write(name, texts):
    (tmp_path / f"{name}-generations.jsonl").write_text("".join(
        json.dumps({"index": index, "texts": one}) + "\n"
        for index, one in texts.items()))
    return str(tmp_path)

  return write


def test_scores_of_mbpp(code_data, generations):
  """A right body; one that stage 1 saves; one that stage 2 breaks; a wrong one.
  """
  task = code_tasks.mbpp(code_data / "mbpp.jsonl", train_rows=8)
  right = "  return x + {}"
  folder = generations("mbpp", {
      0: [right.format(8)],
      2: [right.format(10) + "\ndef g(:"],
      1: ["  y = x\n  if x < 0:\n    return 0\n  y = x + 9\n  for _ in [1]:\n"
          "    return y"],
      3: ["  return 0"]})
  found = benchmarks.score(task, "test", folder)
  assert found["values"] == [100, 100, 100, 0]
  assert found["value"] == 75


@pytest.mark.parametrize("mode,texts,expected", [
    ("output", ["\nassert f(1) == 9\n", "\nassert f(1) == 9 "], 100),
    ("output", ["\nassert f(1) == 8\n", "\nassert f(1) == f(1)\n"], 0),
    ("input", ["\nassert f(1) == 9\n", "\nassert f(2) == 9"], 50),
    ("input", ["1", ""], 0),
])
def test_scores_of_cruxeval(code_data, generations, mode, texts, expected):
  task = getattr(code_tasks, f"cruxeval_{mode}_prediction")(
      code_data / "cruxeval.jsonl", train_rows=8)
  found = benchmarks.score(task, "test", generations(task.name, {0: texts}))
  assert found["values"] == [expected]


def test_several_seeds_are_a_mean_and_a_deviation():
  record = {"method": "m", "task": "t", "metric": "bleu",
            "trained parameters": 0}
  one = tables.summary([{**record, "value": v} for v in (1.0, 2.0, 6.0)])
  assert tables.cell_text(one) == "3.0 ± 2.6"
  single = tables.summary([{**record, "value": 50.0, "values": [0, 100] * 50}])
  low, high = single["interval_95"]
  # Binomial: 50 ± 1.96 * 5.
  assert abs(low - 40.2) < 1.5 and abs(high - 59.8) < 1.5
  assert tables.cell_text(single) == f"50.0 [{low:.1f}, {high:.1f}]"


def test_a_table_has_a_column_for_each_metric():
  record = {"method": "m", "task": "E2E", "metric": "bleu",
            "trained parameters": 1_000}
  one = tables.summary([
      {**record, "value": 10 * v, "other metrics": {"nist": v, "rouge_l": v}}
      for v in (1.0, 2.0, 6.0)])
  deviation = np.std([1, 2, 6], ddof=1)
  assert one["other metrics"]["nist"] == {
      "value": 3.0, "deviation": pytest.approx(deviation)}
  other = tables.summary([{**record, "task": "SST-2", "value": 7.0}])
  header, _, row, *_ = tables.markdown(
      {("m", "E2E"): one, ("m", "SST-2"): other}).splitlines()
  assert re.split(r" *\| *", header)[1:-1] == [
      "method", "trained", "E2E (bleu)", "E2E (nist)", "E2E (rouge_l)",
      "SST-2 (bleu)"]
  assert re.split(r" *\| *", row)[1:-1] == [
      "m", "1,000", f"30.0 ± {10 * deviation:.1f}", f"3.00 ± {deviation:.2f}",
      f"3.0 ± {deviation:.1f}", "7.0"]


def test_a_picture_over_a_number():
  """Points in the axis's order with their deviations, a level for the rest."""
  record = {"task": "E2E", "metric": "bleu", "trained parameters": 0}
  found = {
      (method, "E2E"): tables.summary([
          {**record, "method": method, "value": value} for value in values])
      for method, values in {
          "none": (7.0,), "long": (20.0, 22.0), "short": (10.0, 12.0)}.items()}
  [panel] = tables.figure(
      found, "title", "PREFIX_LENGTH", {"long": 10, "short": 5}).axes
  [line] = [one for one in panel.lines if len(one.get_xdata()) == 2
            and one.get_linestyle() == "-"]
  assert line.get_xydata().tolist() == [[5, 11], [10, 21]]
  bars = [bar.get_segments()[0].tolist()
          for one in panel.containers for bar in one[2]]
  np.testing.assert_allclose(bars, [
      [[x, y - 2**0.5], [x, y + 2**0.5]] for x, y in ((5, 11), (10, 21))])
  [level] = panel.get_legend_handles_labels()[0]
  assert (level.get_label(), level.get_ydata()[0]) == ("none", 7)
  assert (panel.get_xlabel(), panel.get_ylabel()) == ("PREFIX_LENGTH", "bleu")


def test_an_axis_that_no_method_sets(flags, command, tmp_path):
  for axis in ("PREFIX_LENGTH", "LORA_TARGETS"):
    outcome = command("compare", *flags(
        COMPARE_OUTPUT_DIR=str(tmp_path), ONLY_TASKS=["labels"],
        PICTURE_AXIS=axis))
    assert outcome.status == 2 and f"PICTURE_AXIS is '{axis}'" in outcome.err
  assert not list(tmp_path.glob("task=*"))


def test_bindings_go_where_their_file_goes():
  listed = ["models/gpt2.gin", {"A": 1}, "prompts/lora.gin", {"LORA_RANK": 2}]
  assert entries.flags(listed, entries.is_model) == [
      entries.flags(["models/gpt2.gin"])[0], "--gin.A=1"]
  assert entries.flags(listed)[2:] == ["--gin.A=1", "--gin.LORA_RANK=2"]
  for bad in ([{"A": 1}], [3]):
    with pytest.raises(errors.UserError, match="neither a gin file"):
      entries.flags(bad)


def test_steps_by_task_name_every_task(flags, command, tmp_path):
  outcome = command("compare", *flags(
      COMPARE_OUTPUT_DIR=str(tmp_path / "out"), TRAIN_STEPS={"labels": 3}))
  assert outcome.status == 2 and "TRAIN_STEPS of code is None" in outcome.err
  assert not (tmp_path / "out").exists()


def test_a_wholly_tuned_model_is_read_from_its_folder(tmp_path):
  os.makedirs(tmp_path / "trained" / "hugging_face")
  cell = cells.Cell("full", "t", 0, [], [], 1, str(tmp_path))
  setting = cells.Setting("base.gguf", 1, 1, None, "cache")
  _, macros = cells.trained_result(cell, setting)
  assert macros["INITIAL_CHECKPOINT_PATH"] == str(
      tmp_path / "trained" / "hugging_face")
  assert macros["VOCABULARY_FILE"] == "base.gguf"
