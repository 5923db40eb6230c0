"""LoRA and (IA)3 from training, by way of merging, to evaluation."""

import json

import pytest

from prompt_tuning.formats import peft
from prompt_tuning.scripts import merge

STEPS = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "SAVE_PERIOD": 3,
         "LOG_PERIOD": 2, "LEARNING_RATE": 0.03}
CONFIGS = "prompt_tuning/configs"


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_run_and_its_merged_model_agree(
    command, tiny_flags, tiny_base, tmp_path, method):
  run, merged = tmp_path / "run", tmp_path / "merged"
  model, *rest = tiny_flags("prompt_finetune", MODEL_DIR=str(run), **STEPS)
  outcome = command(
      "train", model, f"--gin_file={CONFIGS}/prompts/{method}.gin", *rest)
  assert outcome.status == 0, outcome.err
  assert not (run / "prompt.npy").exists()
  assert not (run / "numpy_checkpoints").exists()
  saved = (run / "checkpoint_6" / "manifest.json").read_text()
  assert method in saved and "kernel" not in saved
  assert peft.load(run / "adapter").type == method.upper()
  losses = [json.loads(line)["loss"] for line in
            (run / "train.jsonl").read_text().splitlines()]
  assert losses[-1] < losses[0]

  merge.merge(tiny_base, run / "adapter", merged)
  evaluated = command(
      "eval", *tiny_flags(
          "prompt_eval", CHECKPOINT_PATH=str(merged),
          EVAL_OUTPUT_DIR=str(tmp_path / "eval"), TRAINABLE_REGEX=[]),
      "--gin.PROMPT=None", "--gin.PROMPT_FILE=None")
  assert evaluated.status == 0, evaluated.err
  last, found = (
      [json.loads(line)["prediction"] for line in
       max(folder.rglob("file-00000*.jsonl")).read_text().splitlines()]
      for folder in (run, tmp_path / "eval"))
  assert found == last
