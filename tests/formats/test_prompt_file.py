"""One prompt in every format. Oracle: the array that was written."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import command_line, errors, prompts
from prompt_tuning.formats import npy, prompt_file, t5x

PROMPT = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
VARIABLE = "encoder/prompt/prompt/prompt"
FROM_FILE = "prompt_tuning/configs/prompts/from_file.gin"
TINY = pathlib.Path(__file__).parents[1] / "configs/t5_1_1_tiny_prompt.gin"


def write_adapter(folder, kind="PROMPT_TUNING", rows=PROMPT):
  """As PEFT writes a T5's: its second half is never read."""
  folder.mkdir()
  (folder / "adapter_config.json").write_text(json.dumps({
      "peft_type": kind, "task_type": "SEQ_2_SEQ_LM",
      "num_virtual_tokens": 5, "token_dim": 8, "num_layers": 2,
      "num_attention_heads": 2, "num_transformer_submodules": 2,
      "base_model_name_or_path": "tiny"}))
  safetensors.numpy.save_file(
      {"prompt_embeddings": np.concatenate([rows, np.zeros_like(rows)])},
      folder / "adapter_model.safetensors")
  return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """The prompt's path in each format, all without a dot in the name."""
  root = tmp_path_factory.mktemp("prompts")
  npy.write(root / "encoder.prompt.prompt.prompt", PROMPT)
  t5x.write(root / "checkpoint_3", VARIABLE, PROMPT, 3)
  t5x.write_all(root / "checkpoint_4", [
      ("encoder/layers_0/prompt/prompt/prompt", PROMPT + 1),
      (VARIABLE, PROMPT), ("encoder/norm/scale", np.ones(8))])
  return {
      "npy": str(root / "encoder.prompt.prompt.prompt"),
      "peft": str(write_adapter(root / "adapter")),
      "t5x": str(root / "checkpoint_3"),
      "folder": str(root / f"checkpoint_4/target.{VARIABLE}".replace(
          VARIABLE, VARIABLE.replace("/", "."))),
      "several": str(root / "checkpoint_4")}


@pytest.mark.parametrize("name", ["npy", "peft", "t5x", "folder", "several"])
def test_from_file_takes_every_format(stored, name, clean_gin):
  variable = VARIABLE if name == "several" else None
  found = prompt_file.read(stored[name], variable)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, PROMPT)
  command_line.configure([
      f"--gin_file={TINY}", f"--gin_file={FROM_FILE}",
      f"--gin.PROMPT_FILE={stored[name]!r}",
      f"--gin.PROMPT_VARIABLE={variable!r}"])
  module = clean_gin.get_configurable(prompts.Prompt)()
  np.testing.assert_array_equal(
      module.prompt_init(jax.random.PRNGKey(0), (5, 8)), PROMPT)
  with pytest.raises(errors.UserError, match=r"\(5, 8\) but the model wants"):
    module.prompt_init(jax.random.PRNGKey(0), (6, 8))


def test_kinds(stored):
  assert [prompt_file.kind(path) for path in stored.values()] == [
      "npy", "peft", "t5x", "t5x", "t5x"]


def test_a_checkpoint_in_bfloat16(tmp_path):
  t5x.write_all(tmp_path / "checkpoint_1", [(VARIABLE, PROMPT)], 1, "bfloat16")
  np.testing.assert_array_equal(
      prompt_file.read(tmp_path / "checkpoint_1"),
      PROMPT.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_variable_of_an_original_checkpoint(shared_data):
  """The shapes of its tiny model."""
  folder = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  table = prompt_file.read(folder, "target/token_embedder/embedding")
  assert table.shape == (32128, 4)
  assert prompt_file.read(
      folder, "decoder/relpos_bias/rel_embedding").shape == (2, 4)


@pytest.mark.parametrize("name, variable, words", [
    ("absent", None, "There is no"),
    ("npy", VARIABLE, "has no variables such as"),
    ("peft", VARIABLE, "has no variables such as"),
    ("several", None, "holds 2 prompts"),
    ("several", "encoder/prompt/promt", "the nearest names are"),
    ("several", "encoder/norm/scale", r"\(8,\), and a prompt is \[P, H\]")])
def test_refusals(stored, name, variable, words):
  with pytest.raises(errors.UserError, match=words):
    prompt_file.read(stored.get(name, "absent"), variable)


def test_what_is_no_prompt(tmp_path):
  with pytest.raises(errors.UserError, match="neither a .npy file"):
    prompt_file.read(tmp_path)
  with pytest.raises(errors.UserError, match="more than one table"):
    prompt_file.read(
        write_adapter(tmp_path / "ia3", "MULTITASK_PROMPT_TUNING"))
  bad = PROMPT.copy()
  bad[1, 2] = np.nan
  t5x.write(tmp_path / "checkpoint_1", VARIABLE, bad)
  with pytest.raises(errors.UserError, match="NaN or infinite"):
    prompt_file.read(tmp_path / "checkpoint_1")
