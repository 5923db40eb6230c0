"""Each method from training to a later run that is given its result by path.

Oracle: the last evaluation of the training run itself.
"""

import json

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.models import causal_lm, decoder_only
from prompt_tuning.train import state as state_lib

CONFIGS = "prompt_tuning/configs"
PLAIN = f"{CONFIGS}/models/causal_lm_from_checkpoint.gin"
PROMPTED = f"{CONFIGS}/models/causal_lm_from_checkpoint_prompt.gin"
STEPS = {"TRAIN_STEPS": 3, "EVAL_PERIOD": 3, "SAVE_PERIOD": 3,
         "LOG_PERIOD": 1, "LEARNING_RATE": 0.03}
# Its own words, and the end: tokens of the targets of a text.
TARGET_TOKENS = 2


@pytest.fixture(scope="module")
def tiny_causal(tmp_path_factory):
  """A Hugging Face directory of a tiny GPT-2, with a tokenizer."""
  import tokenizers

  config = causal_lm.Config(
      vocab_size=16, embed_dim=8, num_layers=2, num_heads=2, head_dim=4,
      mlp_dim=16, positions="learned", max_positions=40, norm="layer_norm",
      mlp_activations=("gelu",), qkv_bias=True, attention_out_bias=True,
      mlp_bias=True)
  shapes, _ = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(config), None).abstract()
  draw = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: draw.normal(float(len(s.shape) == 1), 0.3, s.shape)
      .astype(np.float32), shapes)
  folder = tmp_path_factory.mktemp("tiny_causal")
  hugging_face.save(
      folder, params, config, "float32", token_ids={"eos_token_id": 1})
  words = {word: i for i, word in enumerate(
      ("<unk>", "</s>", "the", "array", "number", "is", "sorted", "empty"))}
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(words, "<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
      json.dumps({"eos_token": "</s>"}))
  return folder


def flags(tiny_flags, path, run, *files, **macros):
  """`tiny_flags` on a decoder-only model, its gin files in front."""
  _, *rest = tiny_flags(run, CHECKPOINT_PATH=None, **macros)
  return [*(f"--gin_file={file}" for file in files), *rest,
          f"--gin.INITIAL_CHECKPOINT_PATH={str(path)!r}"]


# What a method trains with, and what a later run is given.
METHODS = {
    "pt": ([PROMPTED], [PROMPTED], {"PROMPT_FILE": "prompt.npy"}),
    "lora": ([PLAIN, "lora"], [PLAIN], {"ADAPTER": "adapter"}),
    "lora_code": ([PLAIN, "lora_code"], [PLAIN], {"ADAPTER": "adapter"}),
    "ia3": ([PLAIN, "ia3"], [PLAIN], {"ADAPTER": "adapter"}),
    "prefix": ([PLAIN, "prefix"], [PLAIN, "prefix"],
               {"PROMPT_FILE": "prompt.npy"}),
    "prefix_for_peft": (
        [PLAIN, "prefix"], [PLAIN], {"ADAPTER": "adapter"}),
    "prefix_from_words": (
        [PLAIN, "prefix", "prefix_from_words"], [PLAIN, "prefix"],
        {"PROMPT_FILE": "prompt.npy"}),
    "adapter": ([PLAIN, "adapter"], [PLAIN, "adapter"], {"RUN_DIR": "."}),
    "full": ([PLAIN, "full"], [PLAIN],
             {"INITIAL_CHECKPOINT_PATH": "hugging_face"}),
    "top_layers": ([PLAIN, "top_layers"], [PLAIN],
                   {"INITIAL_CHECKPOINT_PATH": "hugging_face"})}


@pytest.mark.parametrize("method", [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ("lora", "ia3", "top_layers") else name for name in METHODS])
def test_a_later_run_has_the_loss_of_training(
    command, tiny_flags, tiny_causal, tmp_path, method):
  training, applying, given = METHODS[method]
  training, applying = (
      [f if f.endswith(".gin") else f"{CONFIGS}/prompts/{f}.gin"
       for f in files] for files in (training, applying))
  run = tmp_path / "run"
  own = {"full": {"WARMUP_STEPS": 0},
         "prefix_from_words": {"PREFIX_TEXT": "a table"}}.get(method, {})
  outcome = command("train", *flags(
      tiny_flags, tiny_causal, "prompt_finetune", *training,
      MODEL_DIR=str(run), **STEPS, **own))
  assert outcome.status == 0, outcome.err
  losses = [json.loads(line)["loss"] for line in
            (run / "train.jsonl").read_text().splitlines()]
  assert len(losses) == 3 and losses[-1] != losses[0]

  macros = {"PROMPT_FILE": None, "INFER_MODE": "score",
            "INFER_OUTPUT_DIR": str(tmp_path / "out")}
  macros |= {name: str(run / file) for name, file in given.items()}
  path = macros.pop("INITIAL_CHECKPOINT_PATH", tiny_causal)
  none = ["--gin.PROMPT_FILE=None"] if macros["PROMPT_FILE"] is None else []
  if "prefix" in applying[-1]:  # the table that the projection made
    none = ["--gin.PREFIX=@prefix.Prefix",
            "--gin_bindings=prefix.Prefix.prefix_init = "
            "@prompt_init/prompts.from_array()"]
  inferred = command("infer", *flags(
      tiny_flags, path,
      "trained_infer" if "RUN_DIR" in given else "prompt_infer",
      *applying, **macros), *none)
  assert inferred.status == 0, inferred.err
  scores = [json.loads(line)["score"] for line in
            (tmp_path / "out" / "file-score.jsonl").read_text().splitlines()]
  expected = outcome.result["file/loss"]
  np.testing.assert_allclose(
      -sum(scores) / (TARGET_TOKENS * len(scores)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["infer", "train"])
def test_a_prefix_of_another_geometry_is_one_sentence(
    command, tiny_flags, tiny_causal, tmp_path, name):
  """To be used, or to start from: 16 numbers a position are of one layer."""
  np.save(tmp_path / "other.npy", np.zeros((5, 16), np.float32))
  path, prompts = str(tmp_path / "other.npy"), f"{CONFIGS}/prompts"
  if name == "train":
    given = flags(
        tiny_flags, tiny_causal, "prompt_finetune", PLAIN,
        f"{prompts}/prefix.gin", f"{prompts}/prefix_from_file.gin",
        MODEL_DIR=str(tmp_path / "run"), PREFIX_FILE=path, **STEPS)
  else:
    given = [*flags(
        tiny_flags, tiny_causal, "prompt_infer", PLAIN, f"{prompts}/prefix.gin",
        PROMPT_FILE=path, INFER_OUTPUT_DIR=str(tmp_path / "out")),
             "--gin.PREFIX=@prefix.Prefix",
             "--gin_bindings=prefix.Prefix.prefix_init = "
             "@prompt_init/prompts.from_array()"]
  outcome = command(name, *given)
  assert outcome.status == 2
  [line] = outcome.err.splitlines()
  assert line.startswith("error: ")
  assert "(5, 16)" in line and "(5, 32)" in line


def test_a_full_run_goes_on_bit_for_bit(
    command, tiny_flags, tiny_causal, tmp_path):
  """After an end at step 2 of 3, as one run; one checkpoint stays."""

  def train(folder, total):
    outcome = command("train", *flags(
        tiny_flags, tiny_causal, "prompt_finetune", PLAIN,
        f"{CONFIGS}/prompts/full.gin", MODEL_DIR=str(folder), **STEPS | {
            "TRAIN_STEPS": total}, SCHEDULE_STEPS=3, WARMUP_STEPS=1,
        MAX_SHARD_BYTES=2000))
    assert outcome.status == 0, outcome.err

  train(tmp_path / "one", 3)
  train(tmp_path / "two", 2)
  train(tmp_path / "two", 3)
  assert [p.name for p in (tmp_path / "two").glob("checkpoint_*")] == [
      "checkpoint_3"]
  found = []
  for name in ("one", "two"):
    weights = base.open_base(tmp_path / name / "hugging_face")
    arrays = {k: np.empty(v.shape, v.dtype) for k, v in weights.arrays.items()}
    for path, array in arrays.items():
      weights.read_into(path, array)
    found.append(state_lib.unflatten(arrays))
  jax.tree.map(np.testing.assert_array_equal, *found)
  assert len(list((tmp_path / "two" / "hugging_face").glob("model-*"))) > 2
