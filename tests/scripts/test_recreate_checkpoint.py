"""Tests of scripts.recreate_checkpoint.

Oracles: the checkpoint that T5X wrote, our reader, and T5X's own.
"""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import runs
from prompt_tuning.formats import card, npy, t5x
from prompt_tuning.scripts import recreate_checkpoint

NAME = "encoder/prompt/prompt/prompt"
PROMPT = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
BASE = {
    "token_embedder/embedding": np.arange(80.0).reshape(10, 8),
    "encoder/encoder_norm/scale": np.arange(8.0),
    "decoder/a_number": np.float32(2.5),
    NAME: np.zeros((2, 8))}  # of another run; its length may differ


@pytest.fixture
def base(tmp_path):
  path = tmp_path / "base" / "checkpoint_7"
  t5x.write_all(path, BASE.items(), 7)
  return str(path)


@pytest.fixture
def prompt(tmp_path):
  path = str(tmp_path / "prompt.npy")
  npy.write(path, PROMPT)
  return path


def read_all(path):
  weights = base_lib.open_base(path)
  found = {name: np.empty(spec.shape, spec.dtype)
           for name, spec in weights.arrays.items()}
  for name, values in found.items():
    weights.read_into(name, values)
  return found, weights.step


def assert_holds(path, wanted, step):
  found, found_step = read_all(path)
  assert found.keys() == wanted.keys() and found_step == step
  for name, values in wanted.items():
    np.testing.assert_array_equal(found[name], values)


def test_base_and_prompt(tmp_path, base, prompt, capsys):
  output = tmp_path / "new" / "checkpoint_12"
  recreate_checkpoint.main([
      f"--base={base}", f"--prompt={prompt}", f"--output={output}"])
  assert capsys.readouterr().out == f"{output}: the base and {NAME}\n"
  assert_holds(output, BASE | {NAME: PROMPT}, 12)


def test_the_base_alone(tmp_path, base, capsys):
  output = tmp_path / "new" / "checkpoint_0"
  recreate_checkpoint.main([f"--base={base}", f"--output={output}"])
  assert capsys.readouterr().out == f"{output}: the base alone\n"
  assert_holds(output, BASE, 0)


def test_a_step_of_a_run(tmp_path, base):
  """All parameters that the run wrote at that step, by their names."""
  arrays = {NAME: PROMPT, "decoder/prompt/prompt/prompt": PROMPT + 1}
  folder = runs.save_numpy(tmp_path / "run", 5, arrays)
  output = str(tmp_path / "checkpoint_5")
  assert recreate_checkpoint.recreate(base, folder, output) == sorted(arrays)
  assert_holds(output, BASE | arrays, 5)


def test_names_of_prompts(tmp_path, base, prompt):
  """The file's, what the user says, and T5X's variable."""
  named = str(tmp_path / "decoder.prompt.prompt.prompt.npy")
  os.rename(prompt, named)
  t5x.write(tmp_path / "checkpoint_9", "decoder/x/prompt", PROMPT)
  variable = str(tmp_path / "checkpoint_9/target.decoder.x.prompt")
  for number, (source, flag, wanted) in enumerate((
      (named, None, "decoder/prompt/prompt/prompt"),
      (named, "encoder/y/prompt", "encoder/y/prompt"),
      (variable, None, "decoder/x/prompt"))):
    output = str(tmp_path / f"checkpoint_{number}")
    assert recreate_checkpoint.recreate(
        base, source, output, flag) == [wanted]
    assert_holds(output, BASE | {wanted: PROMPT}, number)


def test_bfloat16(tmp_path, base, prompt):
  output = str(tmp_path / "checkpoint_1")
  recreate_checkpoint.recreate(base, prompt, output, dtype="bfloat16")
  found, _ = read_all(output)
  assert {values.dtype for values in found.values()} == {
      np.dtype(jnp.bfloat16)}
  np.testing.assert_array_equal(found[NAME], PROMPT.astype(jnp.bfloat16))


def test_bad_input(tmp_path, base, prompt, capsys):
  narrow, other = str(tmp_path / "narrow.npy"), str(tmp_path / "other.npy")
  npy.write(narrow, PROMPT[:, :6])
  npy.write(other, PROMPT)
  card.write_card(
      other, base_model="another", base_fingerprint="0" * 64, task="",
      metric={}, step=0, settings={})
  folder = runs.save_numpy(tmp_path / "run", 5, {NAME: PROMPT[:, :6]})
  two = runs.save_numpy(
      tmp_path / "run", 6, {NAME: PROMPT, "decoder/prompt": PROMPT})
  before = sorted(tmp_path.iterdir())
  target = tmp_path / "checkpoint_1"
  for flags, words in (
      ((prompt, tmp_path / "sst2"), "must end in checkpoint_N"),
      ((tmp_path / "none", target), "There is no"),
      ((narrow, target), "has width 6, and"),
      ((folder, target), "the shape (3, 6)"),
      ((other, target), "was trained on the base model 'another'"),
      ((two, target, "--variable=encoder/x"), "leave --variable out"),
      ((prompt, base), "exists")):
    with pytest.raises(SystemExit) as leaving:
      recreate_checkpoint.main([
          f"--base={base}", f"--prompt={flags[0]}", f"--output={flags[1]}",
          *flags[2:]])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_real_base(tmp_path, shared_data):
  base = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  prompt = str(tmp_path / "prompt.npy")
  npy.write(prompt, PROMPT[:, :4])
  output = tmp_path / "checkpoint_20"
  recreate_checkpoint.recreate(base, prompt, str(output))
  wanted, _ = read_all(base)
  assert_holds(output, wanted | {NAME: PROMPT[:, :4]}, 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t5x_restores_it(tmp_path, base, prompt, dtype):
  t5x_checkpoints = pytest.importorskip(
      "t5x.checkpoints", reason="T5X is not installed")
  output = str(tmp_path / "checkpoint_12")
  recreate_checkpoint.recreate(base, prompt, output, dtype=dtype)
  found = t5x_checkpoints.load_t5x_checkpoint(output)
  assert int(found["state"]["step"]) == 12
  for name, values in (BASE | {NAME: PROMPT}).items():
    leaf = found["target"]
    for part in name.split("/"):
      leaf = leaf[part]
    wanted = np.asarray(values).astype(
        np.float32 if dtype == "float32" else jnp.bfloat16)
    np.testing.assert_array_equal(leaf, wanted)
