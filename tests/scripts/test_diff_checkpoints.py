"""Tests of scripts.diff_checkpoints: what was changed must be what is told."""

import json
import runpy
import sys

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.checkpoints import hugging_face, runs
from prompt_tuning.formats import npy, t5x
from prompt_tuning.scripts import diff_checkpoints

ARRAYS = {
    "encoder/a": np.arange(6.0).reshape(2, 3), "encoder/b": np.ones(4),
    "decoder/c": np.zeros((2, 2)), "decoder/number": np.float32(3)}


@pytest.fixture
def checkpoint(tmp_path):
  """Writes a T5X checkpoint of `ARRAYS`, some of them changed."""

  def write(name, changes=None, step=1, dtype="float32"):
    changed = ARRAYS | (changes or {})
    path = str(tmp_path / name)
    t5x.write_all(path, [
        (k, v) for k, v in changed.items() if v is not None], step, dtype)
    return path

  return write


def run(*arguments):
  return diff_checkpoints.main([str(a) for a in arguments])


def test_the_same(checkpoint, capsys):
  a, b = checkpoint("a"), checkpoint("b", step=2)
  assert run(a, b) == 0
  assert capsys.readouterr().out == "no difference\n"
  assert run(a, b, "--compare_step") == 1
  assert capsys.readouterr().out == (
      "step    step: 1 and 2\n1 differences\n")


def test_one_of_each_kind_largest_first(checkpoint, tmp_path, capsys):
  a = checkpoint("a", {"encoder/d": np.ones(3)})
  b = checkpoint("b", {
      "encoder/a": ARRAYS["encoder/a"] + [[0, 0, 0.5], [0, 0, 0]],
      "encoder/b": np.array([1, 1, -7, 2.0]), "decoder/number": None,
      "decoder/c": np.zeros((2, 3)), "encoder/d": np.ones((3, 1))})
  output = tmp_path / "out.json"
  assert run(a, b, f"--output={output}") == 1
  assert capsys.readouterr().out.splitlines() == [
      "missing decoder/number: only in a",
      "shape   decoder/c: (2, 2) and (2, 3)",
      "shape   encoder/d: (3,) and (3, 1)",
      "value   encoder/b: 2 of 4 elements (50 %), by up to 8",
      "value   encoder/a: 1 of 6 elements (16.7 %), by up to 0.5",
      "5 differences"]
  written = json.loads(output.read_text())
  assert [d["largest"] for d in written["differences"]] == [
      None, None, None, 8, 0.5]


def test_only_names_differ(checkpoint):
  """Where the original ends with 0."""
  more = checkpoint("more", {"encoder/d": np.ones(3)})
  plain = checkpoint("plain")
  assert run(more, plain) == run(plain, more) == 1


def test_tolerances_and_dtypes(checkpoint):
  a = checkpoint("a")
  close = checkpoint("close", {"encoder/b": np.ones(4) + 1e-6})
  rounded = checkpoint("rounded", dtype="bfloat16")  # the same numbers
  assert run(a, close) == 1
  assert run(a, close, "--rtol=1e-5") == run(a, close, "--atol=1e-5") == 0
  found = diff_checkpoints.diff(
      *map(diff_checkpoints.open_checkpoint, (a, rounded)))
  assert [d.kind for d in found] == ["dtype"] * 4
  assert run(a, rounded, "--atol=1e-9") == 0


def test_nan_and_infinity(checkpoint, tmp_path):
  nan, inf = np.array([1, np.nan, 1, 1]), np.array([1, np.inf, 1, 1])
  a, same, other = (
      checkpoint(name, {"encoder/b": values})
      for name, values in (("a", nan), ("same", nan), ("other", inf)))
  assert run(a, same) == 0
  output = tmp_path / "out.json"
  assert run(a, other, f"--output={output}") == 1
  assert json.loads(output.read_text())["differences"][0]["largest"] is None


def test_a_fraction(checkpoint):
  """Of the values; whoever is to be checked is."""
  a = checkpoint("a")
  b = checkpoint("b", {"encoder/b": np.zeros(4)})
  found = {run(a, b, "--frac=0.25", f"--seed={seed}") for seed in range(12)}
  assert found == {0, 1}
  assert {run(a, b, "--frac=0.01", f"--seed={seed}",
              "--check=target/encoder/b") for seed in range(12)} == {1}
  renamed = checkpoint("renamed", {"encoder/z": np.zeros(1)})
  assert run(a, renamed, "--frac=0.01") == 1


def test_checkpoints_of_runs(tmp_path):
  with runs.RunCheckpoints(tmp_path, keep=2) as checkpoints:
    for step in (4, 5):
      checkpoints.save(step, {
          "trainable": {"encoder": {"prompt": np.ones((2, 3))}},
          "optimizer": [np.full(3, step)], "step": np.int32(step)}, {})
  a, b = (tmp_path / f"checkpoint_{step}" for step in (4, 5))
  opened = diff_checkpoints.open_checkpoint(a)
  assert opened.arrays.keys() == {"encoder/prompt", "state/optimizer/0"}
  assert opened.step == 4
  assert run(a, b) == 1 and run(a, b, "--limit_to_params") == 0
  (b / "manifest.json").write_text("{}")
  with pytest.raises(errors.UserError, match="is damaged"):
    diff_checkpoints.open_checkpoint(b)


def test_other_formats(tmp_path, tiny_base, checkpoint):
  """Hugging Face against T5X of the same model, and `.npy` files."""
  weights = hugging_face.HuggingFaceWeights(str(tiny_base))
  arrays = {}
  for name, spec in weights.arrays.items():
    arrays[name] = np.empty(spec.shape, spec.dtype)
    weights.read_into(name, arrays[name])
  same, other = tmp_path / "same", tmp_path / "other"
  t5x.write_all(same, arrays.items())
  arrays["token_embedder/embedding"][7, 3] += 1
  t5x.write_all(other, arrays.items())
  assert run(tiny_base, same) == 0
  assert run(tiny_base, other) == 1
  for name, values in (("x", np.eye(3)), ("y", np.eye(3)), ("z", np.eye(4))):
    npy.write(tmp_path / f"{name}.npy", values)
  assert run(tmp_path / "x.npy", tmp_path / "y.npy") == 0
  assert run(tmp_path / "x.npy", tmp_path / "z.npy") == 1


def test_adapters(shared_data):
  root = shared_data / "peft_adapters"
  name = sorted(p.name for p in (root / "trained/adapters").glob("lora_*"))[0]
  one, other = (root / kind / "adapters" / name
                for kind in ("initial", "trained"))
  assert run(one, one) == 0
  assert run(one, other) == 1


def test_the_optimizer_of_a_real_checkpoint(shared_data):
  """Its 261 leaves are 52 parameters, 208 of the optimizer, and the step."""
  path = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  assert len(diff_checkpoints.open_checkpoint(path).arrays) == 52 + 208
  assert len(diff_checkpoints.open_checkpoint(path, True).arrays) == 52


def test_the_optimizer_in_orbax_layout(tmp_path):
  ocp = pytest.importorskip("orbax.checkpoint")
  for name, moment in (("a", 1.0), ("b", 2.0)):
    ocp.PyTreeCheckpointer().save(tmp_path / name / "state", {
        "target": {"encoder": {"a": np.ones((2, 2))}},
        "state": {"step": np.int32(3), "param_states": {
            "encoder": {"a": {"v": np.full(2, moment)}}}}})
  a, b = tmp_path / "a", tmp_path / "b"
  assert diff_checkpoints.open_checkpoint(a).arrays.keys() == {
      "encoder/a", "state/param_states/encoder/a/v"}
  assert run(a, b) == 1 and run(a, b, "--limit_to_params") == 0


def test_bad_input(checkpoint, tmp_path, capsys):
  a = checkpoint("a")
  for arguments, words in (
      ((a, tmp_path / "none"), "There is no"),
      ((a, a, "--frac=0"), "--frac 0.0 must be above 0"),
      ((a, a, "--rtol=-1"), "not negative"),
      ((a, a, "--check=encoder/q"), "--check encoder/q is not in both"),
      ((a, a, f"--output={tmp_path / 'no' / 'file'}"), "cannot write")):
    with pytest.raises(SystemExit) as leaving:
      run(*arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_exit_status(checkpoint, monkeypatch, capsys):
  for changes, status, said in (
      ({"encoder/b": np.zeros(4)}, 1, "by up to 1\n1 differences\n"),
      ({}, 0, "no difference\n")):
    paths = [checkpoint(f"a{status}"), checkpoint(f"b{status}", changes)]
    monkeypatch.setattr(sys, "argv", ["diff_checkpoints", *paths])
    with pytest.raises(SystemExit) as leaving:
      runpy.run_module(diff_checkpoints.__name__, run_name="__main__")
    assert leaving.value.code == status
    assert capsys.readouterr().out.endswith(said)
