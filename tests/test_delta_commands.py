"""LoRA and (IA)3 from training, by way of merging, to evaluation."""

import json

import pytest

from prompt_tuning.formats import peft
from prompt_tuning.scripts import merge

STEPS = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "SAVE_PERIOD": 3,
         "LOG_PERIOD": 2, "LEARNING_RATE": 0.03}
CONFIGS = "prompt_tuning/configs"


# As models/ia3_t5_1_1.gin has it.
ORIGINAL_IA3 = """
from __gin__ import dynamic_registration
from prompt_tuning.methods import ia3
PROMPT = None
DELTA = @ia3.OriginalIa3()
TRAINABLE_REGEX = ['.*/ia3_scaling']
"""


@pytest.mark.parametrize("method", ["lora", "ia3", "ia3_scaling"])
def test_a_run_and_its_merged_model_agree(
    command, tiny_flags, tiny_base, tmp_path, method):
  run, merged = tmp_path / "run", tmp_path / "merged"
  model, *rest = tiny_flags("prompt_finetune", MODEL_DIR=str(run), **STEPS)
  file = f"{CONFIGS}/prompts/{method}.gin"
  if method == "ia3_scaling":
    file = tmp_path / "original_ia3.gin"
    file.write_text(ORIGINAL_IA3)
  outcome = command("train", model, f"--gin_file={file}", *rest)
  assert outcome.status == 0, outcome.err
  assert not (run / "prompt.npy").exists()
  assert not (run / "numpy_checkpoints").exists()
  saved = (run / "checkpoint_6" / "manifest.json").read_text()
  assert method in saved and "kernel" not in saved
  assert peft.load(run / "adapter").type == method.split("_")[0].upper()
  losses = [json.loads(line)["loss"] for line in
            (run / "train.jsonl").read_text().splitlines()]
  assert losses[-1] < losses[0]

  merge.merge(tiny_base, run / "adapter", merged)
  expected = predictions(run)
  for base, adapter in ((merged, None), (tiny_base, str(run / "adapter"))):
    output = tmp_path / f"eval of {base.name}"
    evaluated = command(
        "eval", *tiny_flags(
            "prompt_eval", CHECKPOINT_PATH=str(base),
            EVAL_OUTPUT_DIR=str(output), TRAINABLE_REGEX=[]),
        "--gin.PROMPT=None", "--gin.PROMPT_FILE=None",
        f"--gin.ADAPTER={adapter!r}")
    assert evaluated.status == 0, evaluated.err
    assert predictions(output) == expected


def predictions(folder):
  newest = max(folder.rglob("file-00000*.jsonl"))
  return [json.loads(line)["prediction"]
          for line in newest.read_text().splitlines()]


def test_an_adapter_goes_into_a_plain_model_alone(
    command, tiny_flags, tmp_path):
  outcome = command("eval", *tiny_flags(
      "prompt_eval", ADAPTER="sst2_lora", PROMPT_FILE="prompt.npy",
      EVAL_OUTPUT_DIR=str(tmp_path)))
  assert outcome.status == 2
  assert "ADAPTER is sst2_lora, and the gin files give a prompt" in outcome.err
