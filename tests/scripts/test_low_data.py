"""Prefix tuning with few examples, from its gin files to a sweep.

Oracles: the single runs of a sweep's members; the tokens of the starting words.
"""

import numpy as np
import pytest

from prompt_tuning.formats import npy

CONFIGS = "prompt_tuning/configs"
METHOD = ("models/causal_lm_from_checkpoint", "prompts/prefix",
          "prompts/prefix_from_words")
STEPS = {"TRAIN_STEPS": 4, "WARMUP_STEPS": 1, "EVAL_PERIOD": 2,
         "SAVE_PERIOD": 2, "LEARNING_RATE": 0.01, "BATCH_SIZE": 8,
         "PREFIX_HIDDEN_DIM": 4,
         "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 24}}


@pytest.fixture
def run(command, tiny_llama, code_data):
  """Runs a command with a run's file; later macros win."""
  def start(name, file, folder, **macros):
    macros = STEPS | {
        "INITIAL_CHECKPOINT_PATH": str(tiny_llama), "MODEL_DIR": str(folder),
        "NLG_FOLDER": str(code_data)} | macros
    return command(
        name, *(f"--gin_file={CONFIGS}/{one}.gin" for one in (*METHOD, file)),
        *(f"--gin.{macro}={value!r}" for macro, value in macros.items()))

  return start


@pytest.mark.slow
def test_a_sweep_over_draws_has_the_single_runs(run, tmp_path):
  swept = run("sweep", "runs/prefix_low_data_sweep", tmp_path / "swept",
              LOW_DATA_SIZES=[4, 8], LOW_DATA_SEEDS=[1])
  assert swept.status == 0, swept.err
  assert [(one["seed"], one["task"]) for one in swept.result] == [
      (seed, f"nlg_e2e_{size}_1") for seed in (0, 1) for size in (4, 8)]
  alone = run("train", "runs/prefix_low_data", tmp_path / "alone",
              LOW_DATA_EXAMPLES=4, LOW_DATA_SEED=1, RANDOM_SEED=1)
  assert alone.status == 0, alone.err
  assert alone.result["nlg_e2e_4_1/loss"] > 0
  prefixes = {
      one["member"]: npy.read(tmp_path / "swept" / one["member"] / "prompt.npy")
      for one in swept.result}
  np.testing.assert_allclose(
      prefixes["seed=1_task=nlg_e2e_4_1"],
      npy.read(tmp_path / "alone" / "prompt.npy"), rtol=1e-4, atol=1e-5)
  assert len({array.tobytes() for array in prefixes.values()}) == 4
  # " summarize" is ten letters to a tokenizer of bytes.
  assert {len(array) for array in prefixes.values()} == {10}
  found = {path.name for path in
           (tmp_path / "alone" / "numpy_checkpoints").iterdir()}
  assert found == {"checkpoint_2", "checkpoint_4"}


def test_more_examples_than_there_are_is_one_sentence(run, tmp_path):
  outcome = run("train", "runs/prefix_low_data", tmp_path,
                LOW_DATA_EXAMPLES=21)
  assert outcome.status == 2
  [line] = outcome.err.splitlines()
  assert "task nlg_e2e has 20 examples and 21 are to be drawn" in line
