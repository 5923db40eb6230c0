"""Prompts that are made per example, from training to inference by commands."""

import importlib
import json
import os
import pathlib
import socket

import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.formats import card, npy

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = "prompt_tuning/configs"
STEPS = {"TRAIN_STEPS": 4, "EVAL_PERIOD": 4, "SAVE_PERIOD": 4,
         "LOG_PERIOD": 2, "PROMPT_LENGTH": 3, "LOPA_RANK": 2}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, save_random_lm):
  """A tiny Llama as Hugging Face keeps it, with weights and a tokenizer."""
  import tokenizers

  from prompt_tuning.models import causal_lm

  config = causal_lm.Config(
      vocab_size=20, embed_dim=8, num_layers=1, num_heads=2, head_dim=4,
      mlp_dim=16, max_positions=64)
  folder = tmp_path_factory.mktemp("tiny_llama")
  save_random_lm(folder, config, 0.5)
  words = {word: i for i, word in enumerate(
      ("<unk>", "</s>", "the", "array", "number", "is", "empty", "sorted"))}
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(words, "<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
      json.dumps({"eos_token": "</s>"}))
  return folder


@pytest.fixture(scope="session")
def causal_flags(tiny_llama, tiny_flags):
  """As `tiny_flags`, of the tiny Llama."""

  def flags(run, **macros):
    base = {"INITIAL_CHECKPOINT_PATH": str(tiny_llama),
            "CHECKPOINT_PATH": str(tiny_llama)}
    _, *rest = tiny_flags(run, **base | macros)
    return [
        f"--gin_file={CONFIGS}/models/causal_lm_from_checkpoint_prompt.gin",
        *rest,
        f"--gin.INITIAL_CHECKPOINT_PATH={str(tiny_llama)!r}"]

  return flags


ENCODER = '''
"""Counts letters: what an instance encoder is, for tests."""

import collections

import numpy as np

CALLS = []


class Letters:
  fingerprint = "letters"

  def __init__(self, width=6):
    self.width = width

  def encode(self, texts):
    CALLS.append(list(texts))
    return np.array([
        [text.count(c) for c in "aeinsr"[:self.width]] for text in texts],
        np.float32) / 4


class Others(Letters):
  fingerprint = "others"
'''


@pytest.fixture(scope="module")
def letters_folder(tmp_path_factory):
  """Where `letters` has its files; gin knows a class of one name once."""
  folder = tmp_path_factory.mktemp("letters")
  (folder / "letters_encoder.py").write_text(ENCODER)
  for name in ("Letters", "Others"):
    (folder / f"{name}.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        f"import letters_encoder\nENCODER = @letters_encoder.{name}()\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder


@pytest.fixture
def letters(letters_folder):
  """A gin file with an ENCODER, and the module that it is from."""
  module = importlib.import_module("letters_encoder")
  module.CALLS.clear()
  return f"--gin_file={letters_folder / 'Letters.gin'}", module


def lopa(flags, method="lopa", *files):
  """The method's gin file behind the model's."""
  model, *rest = flags
  return [model, f"--gin_file={CONFIGS}/prompts/{method}.gin", *files, *rest]


def predictions(folder):
  newest = max(folder.rglob("file-0000*.jsonl"))
  return [json.loads(line)["prediction"]
          for line in newest.read_text().splitlines()]


def losses(run):
  return [json.loads(line)["loss"] for line in
          (run / "train.jsonl").read_text().splitlines()]


def test_lopa_on_a_causal_model(command, causal_flags, letters, tmp_path):
  """Training with an encoder; evaluation of what it left; what is refused."""
  run, encoder = tmp_path / "run", letters[0]
  outcome = command("train", *lopa(causal_flags(
      "prompt_finetune", MODEL_DIR=str(run), LEARNING_RATE=0.1, **STEPS),
      "lopa", encoder))
  assert outcome.status == 0, outcome.err
  # P H + 2 (E E + E) + E P R + P R + E H R + H R: E 6, H 8, P 3, R 2.
  assert "262 trained" in outcome.err
  assert len(letters[1].CALLS) == 2  # train.tsv and dev.tsv, once each
  assert letters[1].CALLS[0][0] == "the array number 0 is empty"
  assert not (run / "prompt.npy").exists()
  read = card.read_card(run / "prompt.json")
  assert read.shape == (3, 8) and read.settings["encoder"] == "letters"

  def evaluate(*files, **macros):
    return command("eval", *lopa(causal_flags("prompt_eval", **{
        "PROMPT_FILE": str(run / "prompt.safetensors"), "PROMPT_LENGTH": 3,
        "LOPA_RANK": 2, "EVAL_OUTPUT_DIR": str(tmp_path / "eval")} | macros),
        "lopa", *files))

  evaluated = evaluate(encoder)
  assert evaluated.status == 0, evaluated.err
  assert predictions(tmp_path / "eval") == predictions(run)
  for files, macros, sentence in [
      ([], {}, "was trained on encodings of the encoder letters"),
      ([encoder], {"LOPA_RANK": 1}, "set LOPA_RANK = 2"),
      ([encoder], {"FUSION": "add"}, "set FUSION = 'gate'"),
      ([encoder], {"PROMPT_LENGTH": 4}, "set PROMPT_LENGTH = 3"),
      ([encoder], {"HEAD_WIDTH": 5}, "set HEAD_WIDTH"),
      ([encoder], {"CHECKPOINT_PATH": other_base(tmp_path, causal_flags)},
       "was trained on the base model"),
      ([encoder], {"PROMPT_FILE": other_prompt(tmp_path)},
       "is not what the model of the gin files has")]:
    refused = evaluate(*files, **macros)
    assert refused.status == 2 and sentence in refused.err, (
        sentence, refused.err)


def other_base(tmp_path, causal_flags):
  """A copy of the tiny Llama with another embedding table."""
  import shutil

  [source] = [flag.split("'")[1] for flag in causal_flags("prompt_eval")
              if flag.startswith("--gin.CHECKPOINT_PATH")]
  folder = tmp_path / "other_base"
  shutil.copytree(source, folder)
  file = folder / "model.safetensors"
  arrays = safetensors.numpy.load_file(file)
  arrays["model.embed_tokens.weight"] = -arrays["model.embed_tokens.weight"]
  safetensors.numpy.save_file(arrays, file, {"format": "pt"})
  return str(folder)


def other_prompt(tmp_path):
  """A plain prompt, as prompt tuning leaves it."""
  path = tmp_path / "plain.npy"
  npy.write(path, np.ones((3, 8)))
  return str(path)


@pytest.mark.parametrize("method, rank", [
    ("lopa", 2), pytest.param("idpg", None, marks=pytest.mark.slow)])
def test_methods_on_t5(command, tiny_flags, tmp_path, method, rank):
  """With the model's own embedded input; then inference from the file."""
  run = tmp_path / "run"
  outcome = command("train", *lopa(tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), LEARNING_RATE=0.1, **STEPS | {
          "TRAIN_STEPS": 12, "USE_DROPOUT": False, "BATCH_SIZE": 40,
          "EVAL_BATCH_SIZE": 8, "LOPA_RANK": rank}), method))
  assert outcome.status == 0, outcome.err
  assert losses(run)[-1] < losses(run)[0]
  inferred = command("infer", *lopa(tiny_flags(
      "prompt_infer", PROMPT_FILE=str(run / "prompt.safetensors"),
      PROMPT_LENGTH=3, LOPA_RANK=rank, INFER_OUTPUT_DIR=str(tmp_path / "out")),
      method))
  assert inferred.status == 0, inferred.err
  found = [json.loads(line)["prediction"] for line in
           (tmp_path / "out" / "file-predict.jsonl").read_text().splitlines()]
  assert found == predictions(run)


@pytest.mark.slow
def test_an_encoder_is_trained_too(
    command, causal_flags, tiny_llama, tmp_path):
  """It starts from its files, learns, and is in the file that is left."""
  run = tmp_path / "run"
  encoder = [f"--gin_file={CONFIGS}/encoders/decoder_only.gin"]
  options = {"PROMPT_LENGTH": 3, "LOPA_RANK": 2, "FREEZE_ENCODER": False,
             "ENCODER_PATH": str(tiny_llama)}

  def train(**macros):
    return command("train", *lopa(causal_flags("prompt_finetune", **{
        "MODEL_DIR": str(run), "LEARNING_RATE": 0.1,
        "ENCODER_LEARNING_RATE": 0.01} | STEPS | options | macros),
        "lopa", *encoder))

  outcome = train()
  assert outcome.status == 0, outcome.err
  assert "1,190 trained and 824 frozen" in outcome.err  # 366 + 824
  found = safetensors.numpy.load_file(run / "prompt.safetensors")
  start = safetensors.numpy.load_file(tiny_llama / "model.safetensors")
  table = found["encoder/token_embedder/embedding"]
  moved = table - start["model.embed_tokens.weight"]
  # AdamW moves what has a gradient by at most its rate in each of 4 steps;
  # only ids that were read have one. Biases of heads start at 0.
  assert 0 < np.abs(moved).max() < 4 * 0.011
  assert np.abs(found["column/out/bias"]).max() > 0.1
  evaluated = command("eval", *lopa(causal_flags(
      "prompt_eval", PROMPT_FILE=str(run / "prompt.safetensors"),
      EVAL_OUTPUT_DIR=str(tmp_path / "eval"), **options), "lopa", *encoder))
  assert evaluated.status == 0, evaluated.err
  assert predictions(tmp_path / "eval") == predictions(run)
  for outcome, sentence in [
      (train(MODEL_DIR=str(tmp_path / "part"), TRAINABLE_REGEX=[
          ".*/prompt/(row|column|shared)/.*"]),
       "leaves out decoder/prompt/prompt/encoder/"),
      (train(FREEZE_ENCODER=True, TRAIN_STEPS=8),
       "is of a run with other parameters"),
      (command("eval", *lopa(causal_flags(
          "prompt_eval", PROMPT_FILE=str(run / "prompt.safetensors"),
          EVAL_OUTPUT_DIR=str(tmp_path / "eval"), **options | {
              "FREEZE_ENCODER": True}), "lopa", *encoder)),
       "set FREEZE_ENCODER = False")]:
    assert outcome.status == 2 and sentence in outcome.err, (
        sentence, outcome.err)


@pytest.mark.slow
def test_idpg_of_an_encoder_that_is_trained(
    command, causal_flags, tiny_llama, tmp_path):
  """At a rate of 0 it stays as its files have it."""
  outcome = command("train", *lopa(causal_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), LEARNING_RATE=0.1,
      ENCODER_LEARNING_RATE=0.0, FREEZE_ENCODER=False,
      ENCODER_PATH=str(tiny_llama), **STEPS | {"LOPA_RANK": None}), "idpg",
      f"--gin_file={CONFIGS}/encoders/decoder_only.gin"))
  assert outcome.status == 0, outcome.err
  found = safetensors.numpy.load_file(tmp_path / "prompt.safetensors")
  start = safetensors.numpy.load_file(tiny_llama / "model.safetensors")
  np.testing.assert_array_equal(
      found["encoder/token_embedder/embedding"],
      start["model.embed_tokens.weight"])
  assert np.abs(found["own/out/bias"]).max() > 0.1


@pytest.mark.slow
def test_another_method_or_encoder(
    command, causal_flags, letters, letters_folder, tmp_path):
  """A file of IDPG for LOPA; a run that goes on with another encoder."""
  run = tmp_path / "run"

  def train(*files, **macros):
    return command("train", *lopa(causal_flags(
        "prompt_finetune", MODEL_DIR=str(run), **STEPS | {
            "LOPA_RANK": None} | macros), "idpg", *files))

  assert train(letters[0]).status == 0
  refused = train(f"--gin_file={letters_folder / 'Others.gin'}", TRAIN_STEPS=8)
  assert refused.status == 2
  assert "was started with another ENCODER" in refused.err
  refused = command("eval", *lopa(causal_flags(
      "prompt_eval", PROMPT_FILE=str(run / "prompt.safetensors"),
      PROMPT_LENGTH=3, EVAL_OUTPUT_DIR=str(tmp_path / "eval")), "lopa",
      letters[0]))
  assert refused.status == 2
  assert "is of idpg" in refused.err and "prompts/idpg.gin" in refused.err


@pytest.mark.slow
def test_a_sweep_is_its_members_own_runs(
    command, causal_flags, letters, tmp_path):
  """Oracle: single runs, of a member's seed and rate."""
  rates = [0.03, 0.1]
  macros = STEPS | {"PROMPT_LEARNING_RATE": 0.01, "SAVE_PERIOD": 2}
  swept = command("sweep", *lopa(causal_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path / "sweep"), SEEDS=[0, 1],
      LEARNING_RATES=rates, SWEEP_MEMBERS="zip", **macros), "lopa",
      letters[0]))
  assert swept.status == 0, swept.err
  for seed, rate in enumerate(rates):
    alone, name = tmp_path / str(seed), f"seed={seed}_learning_rate={rate}"
    outcome = command("train", *lopa(causal_flags(
        "prompt_finetune", MODEL_DIR=str(alone), RANDOM_SEED=seed,
        LEARNING_RATE=rate, **macros), "lopa", letters[0]))
    assert outcome.status == 0, outcome.err
    mine, single = (
        safetensors.numpy.load_file(folder / "prompt.safetensors")
        for folder in (tmp_path / "sweep" / name, alone))
    assert mine.keys() == single.keys()
    for path, value in single.items():
      np.testing.assert_allclose(
          mine[path], value, rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(
        losses(tmp_path / "sweep" / name), losses(alone), rtol=1e-5)
    assert predictions(tmp_path / "sweep" / name) == predictions(alone)


@pytest.mark.slow
def test_two_processes(
    process, causal_flags, command, letters, letters_folder, tmp_path):
  """Each reads its half of the encodings. Oracle: one process, one device."""
  def flags(run):
    return lopa(causal_flags(
        "prompt_finetune", MODEL_DIR=str(tmp_path / run), LEARNING_RATE=0.1,
        **STEPS | {"LOG_PERIOD": 1}), "lopa", letters[0])

  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  children = [
      process("train", *flags("two"), JAX_PROCESS_ID=str(number),
              JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS=(
                  f"127.0.0.1:{port}"),
              PYTHONPATH=os.pathsep.join([str(ROOT), str(letters_folder)]))
      for number in range(2)]
  for child in children:
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output
  assert command("train", *flags("one")).status == 0
  np.testing.assert_allclose(
      losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  two, one = (safetensors.numpy.load_file(
      tmp_path / run / "prompt.safetensors") for run in ("two", "one"))
  for path, value in one.items():
    np.testing.assert_allclose(two[path], value, rtol=1e-3, atol=1e-4)
