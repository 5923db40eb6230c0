"""`train` on a tiny random RoBERTa: prompt, LoRA and LOPA learn a rule.

Oracle: the rule. A text is "great" if it has more words of one kind than of
the other; chance is half.
"""

import json

import jax
import numpy as np
import pytest

from prompt_tuning import command_line
from prompt_tuning.checkpoints import hugging_face
from prompt_tuning.models import masked_lm, text_encoder
from prompt_tuning.train import loop

CONFIGS = command_line.PACKAGE / "configs"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "great", "terrible", "It",
         "was", ".", "good", "fine", "bad", "sad"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
  """A random RoBERTa of two layers with a tokenizer of words."""
  import tokenizers
  from tokenizers import processors

  folder = tmp_path_factory.mktemp("roberta")
  config = text_encoder.Config(
      len(WORDS), 16, 2, 2, 8, 32, 40, position_offset=2, num_token_types=1,
      norm_epsilon=1e-5)
  module = masked_lm.MaskedLM(config)
  one = np.ones((1, 1), np.int32)
  shapes = jax.eval_shape(
      module.init, jax.random.key(0), one, one, one * 0)["params"]
  draw = np.random.default_rng(0)
  params = jax.tree.map_with_path(
      lambda path, s: draw.normal(size=s.shape).astype(np.float32) * (
          s.shape[0] ** -0.5 if len(s.shape) > 1 else 0.1)
      + (path[-1].key == "scale"), shapes)
  hugging_face.save(folder, params, config, np.float32, "roberta")
  found = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(WORDS)}, "<unk>"))
  found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  found.add_special_tokens(WORDS[:5])
  found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
  found.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({
      "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}))
  return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """train.tsv and dev.tsv as GLUE has SST-2's."""
  folder, draw = tmp_path_factory.mktemp("sst2"), np.random.default_rng(1)
  for name, rows in (("train", 256), ("dev", 64)):
    lines = ["sentence\tlabel"]
    for _ in range(rows):
      length = int(draw.integers(1, 6))
      label = int(draw.integers(2))
      words = ["good", "fine"] if label else ["bad", "sad"]
      lines.append(" ".join(draw.choice(words, length)) + f"\t{label}")
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
  return folder


def train(gin, roberta, files, model_dir, *more, steps=100):
  names = ["models/roberta_base_prompt", *(m for m in more if m[0] != "-"),
           "runs/glue_roberta", "tasks/sst2_masked"]
  flags = [m for m in more if m[0] == "-"]
  gin.clear_config()
  command_line.configure([
      *(f"--gin_file={CONFIGS}/{name}.gin" for name in names),
      "--gin.NUM_LAYERS=2", "--gin.NUM_HEADS=2", "--gin.HEAD_DIM=8",
      "--gin.EMBED_DIM=16", "--gin.MLP_DIM=32", "--gin.MAX_POSITIONS=40",
      f"--gin.NUM_EMBEDDINGS={len(WORDS)}", "--gin.PROMPT_LENGTH=4",
      f"--gin.INITIAL_CHECKPOINT_PATH={str(roberta)!r}",
      f"--gin.TRAIN_FILE={str(files / 'train.tsv')!r}",
      f"--gin.VALIDATION_FILE={str(files / 'dev.tsv')!r}",
      f"--gin.MODEL_DIR={str(model_dir)!r}", "--gin.BATCH_SIZE=32",
      f"--gin.TRAIN_STEPS={steps}", f"--gin.EVAL_PERIOD={steps}",
      "--gin.LOG_PERIOD=1", "--gin.LEARNING_RATE=0.1",
      "--gin.BUCKET_LENGTHS=None",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 1}", *flags])
  results = command_line.call(loop.train)
  lines = (model_dir / "train.jsonl").read_text().splitlines()
  losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
  return results, losses


@pytest.mark.parametrize("method", [
    [], *(pytest.param(flags, marks=pytest.mark.slow) for flags in (
        ["prompts/lora"],
        ["prompts/lopa", "encoders/encoder", "--gin.LOPA_RANK=2",
         "--gin.FREEZE_ENCODER=False"],
        ["prompts/idpg", "encoders/encoder"]))])
def test_training_learns_the_rule(
    clean_gin, roberta, files, tmp_path, method):
  """The RoBERTa is also the encoder: trained by LOPA, frozen by IDPG."""
  if "encoders/encoder" in method:
    method = [*method, f"--gin.ENCODER_PATH={str(roberta)!r}"]
  results, losses = train(clean_gin, roberta, files, tmp_path, *method)
  assert losses[-1] < 0.75 * losses[0]
  assert results["sst2/accuracy"] > 60
  (file,) = (tmp_path / "inference_eval").glob("sst2-*100.jsonl")
  for row in map(json.loads, file.read_text().splitlines()):
    assert row["output"] == max(row["scores"], key=row["scores"].get)
    assert set(row["scores"]) == {" great", " terrible"}
