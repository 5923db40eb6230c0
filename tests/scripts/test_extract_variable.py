"""Tests of scripts.extract_variable. Oracle: numpy, on files of T5X's."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.formats import t5x
from prompt_tuning.scripts import extract_variable

NAME = "encoder/prompt/prompt/prompt"
VALUES = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


@pytest.fixture
def checkpoint(tmp_path):
  path = tmp_path / "checkpoint_3"
  t5x.write(path, NAME, VALUES)
  return path


@pytest.mark.parametrize("lead", ["", "/", "target/"])
def test_an_array_comes_out(tmp_path, checkpoint, lead, capsys):
  output = tmp_path / "new/folder/array.npy"
  extract_variable.main([
      f"--checkpoint_dir={checkpoint}", f"--variable_path={lead}{NAME}",
      f"--output_path={output}"])
  np.testing.assert_array_equal(np.load(output), VALUES)
  assert capsys.readouterr().out == f"{output}: 3 x 8\n"


def test_values_in_bfloat16_stay_readable(tmp_path, checkpoint):
  output = tmp_path / "array.npy"
  extract_variable.extract(checkpoint, NAME, output, "bfloat16")
  found = np.load(output)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(
      found, VALUES.astype(jnp.bfloat16).astype(np.float32))


def test_the_table_of_a_real_checkpoint(tmp_path, shared_data):
  folder = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  for name, shape in (("token_embedder/embedding", (32128, 4)),
                      ("encoder/encoder_norm/scale", (4,))):
    output = tmp_path / "array.npy"
    assert extract_variable.extract(folder, name, output) == shape
    assert np.load(output).shape == shape


def test_bad_input(tmp_path, checkpoint, capsys):
  in_a_file = checkpoint / "checkpoint/array.npy"
  for folder, name, output, words in (
      (tmp_path / "none", NAME, "x.npy", "There is no checkpoint folder"),
      (checkpoint, "encoder/prompt", "x.npy", f"nearest names are {NAME}"),
      (checkpoint, NAME, in_a_file, "cannot write")):
    with pytest.raises(SystemExit) as leaving:
      extract_variable.main([
          f"--checkpoint_dir={folder}", f"--variable_path={name}",
          f"--output_path={tmp_path / output}"])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
  assert not (tmp_path / "x.npy").exists()
