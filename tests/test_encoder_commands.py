"""P-tuning from training to evaluation: what is saved is a plain prompt."""

import json

import numpy as np
import pytest

from prompt_tuning.formats import npy, peft
from prompt_tuning.scripts import convert

STEPS = {"TRAIN_STEPS": 4, "EVAL_PERIOD": 4, "SAVE_PERIOD": 4,
         "LOG_PERIOD": 2, "LEARNING_RATE": 0.1}


@pytest.mark.slow
def test_a_p_tuning_run_leaves_the_prompt_that_it_used(
    command, tiny_flags, tiny_base, tmp_path):
  run = tmp_path / "run"
  model, *rest = tiny_flags("prompt_finetune", MODEL_DIR=str(run), **STEPS)
  outcome = command(
      "train", model, "--gin_file=prompt_tuning/configs/prompts/p_tuning.gin",
      *rest)
  assert outcome.status == 0, outcome.err
  saved = (run / "checkpoint_4" / "manifest.json").read_text()
  assert "mlp_0" in saved  # the encoder itself goes on training from here
  table = npy.read(run / "prompt.npy")
  assert table.shape == (5, 8) and np.std(table) > 0
  # A plain prompt model, without the encoder's gin file, decodes the same.
  evaluated = command("eval", *tiny_flags(
      "prompt_eval", PROMPT_FILE=str(run / "prompt.npy"),
      EVAL_OUTPUT_DIR=str(tmp_path / "eval")))
  assert evaluated.status == 0, evaluated.err
  last, found = (
      [json.loads(line)["prediction"] for line in
       max(folder.rglob("file-0000*.jsonl")).read_text().splitlines()]
      for folder in (run, tmp_path / "eval"))
  assert found == last
  convert.convert(
      str(run / "prompt.npy"), str(tmp_path / "adapter"), str(tiny_base))
  np.testing.assert_array_equal(
      peft.plain_table(peft.load(tmp_path / "adapter")), table)
