"""XSum's two files by the commands of runs/prefix_xsum.gin, with a tiny Llama.

Oracles: the files themselves, and rouge-score.
"""

import json
import statistics

import pytest
from rouge_score import rouge_scorer

from prompt_tuning.scripts import score_text

CONFIGS = "prompt_tuning/configs"
METHOD = ("models/causal_lm_from_checkpoint", "prompts/prefix")
MACROS = {"SEPARATOR": "</s>", "BATCH_SIZE": 8, "PREFIX_LENGTH": 3,
          "PREFIX_HIDDEN_DIM": 4,
          "TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 8}}


@pytest.fixture
def run(command, tiny_llama, tmp_path):
  """Runs a command on files of the package; later macros win."""
  for split, count in (("train", 9), ("val", 3), ("test", 5)):
    for side, text in (("source", "a long text of {}\n"), ("target", "t {}\n")):
      (tmp_path / f"{split}.{side}").write_text("".join(
          text.format(i) for i in range(count)))

  def start(name, *files, **macros):
    macros = MACROS | {
        "INITIAL_CHECKPOINT_PATH": str(tiny_llama),
        "SOURCE_TARGET_FOLDER": str(tmp_path)} | macros
    return command(
        name, *(f"--gin_file={CONFIGS}/{one}.gin" for one in (*METHOD, *files)),
        *(f"--gin.{macro}={value!r}" for macro, value in macros.items()))

  return start


@pytest.mark.slow
def test_from_two_files_to_scored_summaries(run, tmp_path):
  trained = run("train", "runs/prefix_xsum", MODEL_DIR=str(tmp_path / "run"),
                NUM_MICROBATCHES=2, TRAIN_EPOCHS=1)
  assert trained.status == 0, trained.err
  # 12 tokens of a source are a separator and what fits in front of it.
  assert "9 of 9 xsum examples had inputs longer" in trained.err
  written = run(
      "generate", "models/decoding/beam_search", "tasks/xsum",
      "runs/trained_generate", RUN_DIR=str(tmp_path / "run"), NUM_BEAMS=2,
      GENERATE_OUTPUT_DIR=str(tmp_path / "out"))
  assert written.status == 0, written.err
  predictions, targets = (
      (tmp_path / "out" / f"{name}.txt").read_text().splitlines()
      for name in ("predictions", "targets"))
  assert targets == [f"t {i}" for i in range(5)]
  assert len(predictions) == 5
  score_text.main([
      "--outputs", str(tmp_path / "out/predictions.txt"), "--references",
      str(tmp_path / "test.target"), "--metrics=rouge_stemmed"])
  found = json.loads(
      (tmp_path / "out/predictions.txt.scores.json").read_text())
  scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
  assert found["splits"]["all"]["scores"]["rouge1_stemmed"] == pytest.approx(
      100 * statistics.mean(
          scorer.score(target, prediction)["rouge1"].fmeasure
          for target, prediction in zip(targets, predictions)))


def test_lines_that_do_not_line_up_are_one_sentence(run, tmp_path):
  (tmp_path / "train.target").write_text("t\n" * 7)
  outcome = run("train", "runs/prefix_xsum", MODEL_DIR=str(tmp_path / "run"))
  assert outcome.status == 2
  [line] = outcome.err.splitlines()
  assert "train.source has 9 lines and" in line and "train.target 7:" in line
