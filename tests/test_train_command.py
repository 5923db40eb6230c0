"""One prompt from training to predictions, through the three commands."""

import csv
import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import base
from prompt_tuning.formats import card, npy
from prompt_tuning.train import setup
from prompt_tuning.train import state as state_lib

STEPS = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "SAVE_PERIOD": 3,
         "LOG_PERIOD": 2}


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(command, tiny_flags, tmp_path_factory):
  """A finished run of six steps, and what its last evaluation gave."""
  run = tmp_path_factory.mktemp("trained")
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), **STEPS))
  assert outcome.status == 0, outcome.err
  return run, outcome.result


def test_train_writes_what_its_docstring_lists(trained):
  run, _ = trained
  for name in (
      "config.gin", "versions.json", "checkpoint_6/manifest.json",
      "numpy_checkpoints/checkpoint_3/encoder.prompt.prompt.prompt",
      "numpy_checkpoints/checkpoint_6/encoder.prompt.prompt.prompt",
      "prompt.npy", "prompt.json", "train.jsonl", "learning_curve.png",
      "inference_eval/file-metrics.jsonl", "inference_eval/file-000003.jsonl",
      "inference_eval/file-000006.jsonl"):
    assert (run / name).stat().st_size, name
  assert list((run / "tensorboard").glob("events*"))
  assert not (run / "checkpoint_3").exists()  # keep = 1
  assert not (run / "hugging_face").exists()  # the base was frozen
  assert not list(run.rglob("*.tmp*"))
  assert [line["step"] for line in read_lines(run / "train.jsonl")] == [
      2, 3, 4, 6]
  np.testing.assert_array_equal(
      npy.read(run / "prompt.npy"),
      npy.read(run / "numpy_checkpoints" / "checkpoint_6"
               / "encoder.prompt.prompt.prompt"))


def test_card_says_what_the_prompt_is(trained, tiny_base):
  run, results = trained
  found = card.read_card(run / "prompt.json")
  assert found.shape == (5, 8)
  assert found.step == 6
  assert found.task == "file"
  assert found.base_model == tiny_base.name
  assert found.metric == pytest.approx(results)


def test_predictions_have_a_row_an_example(trained, tiny_task):
  run, _ = trained
  rows = read_lines(run / "inference_eval" / "file-000006.jsonl")
  with open(tiny_task / "dev.tsv") as file:
    data = list(csv.reader(file, delimiter="\t"))
  assert [row["input"] for row in rows] == [text for text, _ in data]
  assert [row["target"] for row in rows] == [
      {"0": "empty", "1": "sorted"}[label] for _, label in data]
  assert all(set(row) == {"input", "target", "output", "prediction"}
             for row in rows)


def test_eval_gives_what_the_last_evaluation_of_training_gave(
    command, trained, tiny_flags, tmp_path):
  run, results = trained
  evaluated = command("eval", *tiny_flags(
      "prompt_eval", PROMPT_FILE=str(run / "prompt.npy"),
      EVAL_OUTPUT_DIR=str(tmp_path)))
  assert evaluated.status == 0, evaluated.err
  assert evaluated.result == {
      "file/accuracy": results["file/accuracy"]}
  assert not (tmp_path / "train.jsonl").exists()
  [rows] = (tmp_path / "inference_eval").glob("file-0*.jsonl")
  assert read_lines(rows) == read_lines(
      run / "inference_eval" / "file-000006.jsonl")


@pytest.mark.parametrize("mode, field", [
    ("predict", "prediction"), ("score", "score")])
def test_infer_writes_the_examples_with_what_it_found(
    command, trained, tiny_flags, tmp_path, mode, field):
  run, _ = trained
  inferred = command("infer", *tiny_flags(
      "prompt_infer", PROMPT_FILE=str(run / "prompt.npy"),
      INFER_OUTPUT_DIR=str(tmp_path), INFER_MODE=mode))
  assert inferred.status == 0, inferred.err
  assert inferred.result == [str(tmp_path / f"file-{mode}.jsonl")]
  found = read_lines(tmp_path / f"file-{mode}.jsonl")
  expected = read_lines(run / "inference_eval" / "file-000006.jsonl")
  assert [row["inputs"] for row in found] == [
      row["input"] for row in expected]
  assert found[0].keys() == {"text", "label", "inputs", "targets", field}
  if mode == "predict":
    assert [row["prediction"] for row in found] == [
        row["output"] for row in expected]
  else:  # log-probabilities of real targets, more than an end-of-sequence
    assert all(-100 < row["score"] < -1 for row in found)


@pytest.mark.parametrize("decoding", [
    "greedy", "beam_search", "nucleus_sampling"])
def test_infers_with_each_decoding(
    command, trained, tiny_flags, tmp_path, decoding):
  run, _ = trained
  flags = tiny_flags(
      "prompt_infer", PROMPT_FILE=str(run / "prompt.npy"),
      INFER_OUTPUT_DIR=str(tmp_path))
  flags.insert(2, "--gin_file=prompt_tuning/configs/models/decoding/"
               f"{decoding}.gin")
  first = command("infer", *flags)
  assert first.status == 0, first.err
  rows = read_lines(tmp_path / "file-predict.jsonl")
  assert len(rows) == 12
  command("infer", *flags)  # the same seed, the same draws
  assert read_lines(tmp_path / "file-predict.jsonl") == rows


def test_a_finished_run_is_only_evaluated_again(
    command, tiny_flags, trained):
  run, results = trained
  before = (run / "train.jsonl").read_bytes()
  again = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), **STEPS))
  assert again.status == 0
  assert again.result == results
  assert (run / "train.jsonl").read_bytes() == before


def test_only_the_prompt_is_initialised_and_only_the_prompt_changes(
    command, tiny_flags, tiny_base, tmp_path, monkeypatch):
  """Oracle: the arrays of the file, and the initialiser's range."""
  prepared = []
  prepare = setup.prepare

  def preparing(*arguments, **options):
    weights = prepare(*arguments, **options)
    started = {path: np.array(value) for path, value in state_lib.flatten(
        weights.trainable).items()}
    prepared.append((started, weights.frozen))
    return weights

  monkeypatch.setattr(setup, "prepare", preparing)
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), **STEPS))
  assert outcome.status == 0, outcome.err
  [(started, frozen)] = prepared
  [(path, prompt)] = started.items()
  assert path == "encoder/prompt/prompt/prompt"
  assert (0 <= prompt).all() and (prompt < 0.5).all() and prompt.std() > 0.05
  assert (npy.read(tmp_path / "prompt.npy") != prompt).all()
  after = state_lib.flatten(frozen)  # once the run is over
  assert set(after) == set(base.open_base(tiny_base).arrays)
  for path, value in after.items():
    np.testing.assert_array_equal(
        np.asarray(value), base.read_variable(tiny_base, path), err_msg=path)


@pytest.mark.slow
def test_full_fine_tuning_exports_a_model_that_evaluates(
    command, tiny_flags, tmp_path):
  """The same engine with another list of patterns, and no prompt."""
  plain = tmp_path / "plain.gin"
  plain.write_text("""
      include 'prompt_tuning/configs/models/t5_1_1_default.gin'
      NUM_HEADS = 2
      NUM_ENCODER_LAYERS = 2
      NUM_DECODER_LAYERS = 1
      HEAD_DIM = 4
      EMBED_DIM = 8
      MLP_DIM = 16""".replace("\n      ", "\n"))
  flags = tiny_flags(
      "pretrain", INITIAL_CHECKPOINT_PATH=None,
      MODEL_DIR=str(tmp_path / "run"), **STEPS, WARMUP_STEPS=1)
  flags[0] = f"--gin_file={plain}"
  trained = command("train", *flags)
  assert trained.status == 0, trained.err
  exported = tmp_path / "run" / "hugging_face"
  assert not (tmp_path / "run" / "prompt.npy").exists()
  flags = tiny_flags(
      "prompt_eval", CHECKPOINT_PATH=str(exported),
      EVAL_OUTPUT_DIR=str(tmp_path / "eval"), TRAINABLE_REGEX=[])
  flags[0] = f"--gin_file={plain}"
  evaluated = command("eval", *flags, "--gin.PROMPT_FILE=None")
  assert evaluated.status == 0, evaluated.err
  assert evaluated.result["file/accuracy"] == trained.result["file/accuracy"]


# ----------------------------------------------------------------------- SST-2


@pytest.fixture
def sst2(shared_data, tmp_path):
  """Flags of a task of a few hundred real sentences, and their folder."""
  folder = tmp_path / "sst2"
  folder.mkdir()
  for name, rows in (("train", 300), ("dev", 48)):
    with open(shared_data / "sst2" / f"{name}.tsv", encoding="utf-8") as file:
      lines = [line for line, _ in zip(file, range(rows))]
    (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
  macros = {
      "TASK_NAME": "sst2", "TRAIN_FILE": str(folder / "train.tsv"),
      "VALIDATION_FILE": str(folder / "dev.tsv"),
      "COLUMNS": ["text", "label"],
      "LABELS": {"0": "negative", "1": "positive"},
      "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 4},
      "BATCH_SIZE": 16}
  return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def flags_of(model, run, *more):
  return [f"--gin_file={model}",
          "--gin_file=prompt_tuning/configs/tasks/from_files.gin",
          f"--gin_file=prompt_tuning/configs/runs/{run}.gin", *more]


def train_stop_resume_use(command, tmp_path, model, flags, steps):
  """All that a user does with a run; gives the metrics of training."""
  first, middle, last = steps
  training = [*flags, f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}",
              f"--gin.EVAL_PERIOD={last - first}"]
  for total in (middle, last):
    trained = command("train", *flags_of(
        model, "prompt_finetune", *training, f"--gin.TRAIN_STEPS={total}"))
    assert trained.status == 0, trained.err
  assert f"starting at step {middle}" in trained.err
  prompt = f"--gin.PROMPT_FILE={str(tmp_path / 'run' / 'prompt.npy')!r}"
  using = [f.replace("INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH")
           for f in flags]
  evaluated = command("eval", *flags_of(
      model, "prompt_eval", *using, prompt,
      f"--gin.EVAL_OUTPUT_DIR={str(tmp_path / 'eval')!r}"))
  assert evaluated.status == 0, evaluated.err
  assert evaluated.result.items() <= trained.result.items()
  inferred = command("infer", *flags_of(
      model, "prompt_infer", *using, prompt,
      f"--gin.INFER_OUTPUT_DIR={str(tmp_path / 'infer')!r}"))
  assert inferred.status == 0, inferred.err
  rows = read_lines(tmp_path / "infer" / "sst2-predict.jsonl")
  assert len(rows) == 48
  assert {row["targets"] for row in rows} == {"negative", "positive"}
  return trained.result


def test_sst2_on_a_checkpoint_that_t5x_wrote(
    command, sst2, shared_data, tmp_path):
  """Steps are counted from the checkpoint's own, 3."""
  folder = shared_data / "t5x"
  model = tmp_path / "tiny.gin"
  model.write_text(f"""
include 'prompt_tuning/configs/models/t5_1_1_prompt.gin'
NUM_HEADS = 2
NUM_ENCODER_LAYERS = 2
NUM_DECODER_LAYERS = 2
HEAD_DIM = 2
EMBED_DIM = 4
MLP_DIM = 8
RELPOS_NUM_BUCKETS = 4
RELPOS_MAX_DISTANCE = 8
PROMPT_LENGTH = 4
VOCABULARY_FILE = {str(folder / 't5_vocab')!r}
VOCABULARY_EXTRA_IDS = 128
""")
  checkpoint = folder / "test_t5_1_1_tiny" / "checkpoint_3"
  results = train_stop_resume_use(
      command, tmp_path, model,
      [*sst2, f"--gin.INITIAL_CHECKPOINT_PATH={str(checkpoint)!r}"],
      (3, 6, 9))
  assert set(results) == {
      "sst2/loss", "sst2/perplexity", "sst2/token_accuracy",
      "sst2/accuracy"}
  run = tmp_path / "run"
  assert (run / "checkpoint_9").exists()
  assert [line["step"] for line in read_lines(run / "train.jsonl")][-1] == 9


@pytest.mark.slow
def test_sst2_on_the_embedded_default(command, sst2, tmp_path):
  model = "prompt_tuning/configs/models/t5_1_1_default_prompt.gin"
  train_stop_resume_use(
      command, tmp_path, model,
      [*sst2, "--gin.PROMPT_LENGTH=8"], (0, 4, 8))
