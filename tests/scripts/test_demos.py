"""The demo shell scripts: their syntax, and the command that each one runs.

Oracle: our own parser of gin flags, which refuses what nothing uses.
"""

import os
import pathlib
import re
import runpy
import shutil
import subprocess

import pytest
import setuptools

from prompt_tuning import command_line
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import sharding

FOLDER = command_line.PACKAGE / "scripts"
SCRIPTS = ("sst2-demo", "sst2-demo-eval", "sst2-demo-xxl")
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def demo(tmp_path):
  """Runs a script with a `python3` that only writes down its arguments."""
  stub, told = tmp_path / "python3", tmp_path / "told"
  stub.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" > "{told}"\n')
  stub.chmod(0o755)
  base = tmp_path / "a base"
  base.mkdir()
  for name in ("sentencepiece.model", "prompt.npy"):
    (tmp_path / name).touch()
  variables = {
      "PYTHON": str(stub), "PRETRAINED_MODEL": str(base),
      "VOCABULARY_FILE": str(tmp_path / "sentencepiece.model"),
      "PROMPT_FILE": str(tmp_path / "prompt.npy")}

  def run(name, *arguments, **changes):
    told.unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"]} | variables | changes
    ended = subprocess.run(
        ["bash", str(FOLDER / f"{name}.sh"), *arguments], env=environment,
        cwd=tmp_path, capture_output=True, text=True, timeout=60)
    given = told.read_text().split("\0")[:-1] if told.exists() else None
    return ended, given

  return run


def test_all_scripts_are_tested():
  assert {path.stem for path in FOLDER.glob("*.sh")} >= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_syntax(name):
  path = FOLDER / f"{name}.sh"
  subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)
  assert "\nset -euo pipefail\n" in path.read_text()
  assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_is_understood(demo, clean_gin, name, tmp_path):
  ended, given = demo(
      name, "a folder", str(tmp_path), "--gin.RANDOM_SEED=3")
  assert ended.returncode == 0, ended.stderr
  command = "eval" if name.endswith("eval") else "train"
  assert given[:2] == ["-m", f"prompt_tuning.{command}"]
  command_line.configure(given[2:])
  value = command_line.macro
  folder = "EVAL_OUTPUT_DIR" if command == "eval" else "MODEL_DIR"
  assert value(folder) == "a folder" and value("RANDOM_SEED") == 3
  assert value("BATCH_SIZE") == (32 if name.endswith("xxl") else 128)
  assert value("TASK_FEATURE_LENGTHS") == {"inputs": 512, "targets": 8}
  assert value("EMBED_DIM") == (4096 if name.endswith("xxl") else 768)
  assert os.environ.pop("TFDS_DATA_DIR") == str(tmp_path)
  model = clean_gin.get_configurable(encoder_decoder.EncoderDecoderModel)()
  assert model.module.config.num_encoder_layers == (
      24 if name.endswith("xxl") else 12)
  if command == "train":
    assert value("TRAIN_STEPS") == 1_150_000
    assert value("CLASS_LABELS") == ["positive", "negative"]
  if name.endswith("xxl"):
    mesh = clean_gin.get_configurable(sharding.make_mesh)()
    assert mesh.shape["model"] == 8


@pytest.mark.parametrize("name", SCRIPTS)
def test_folders_may_come_from_the_environment(demo, name, tmp_path):
  folder = "EVAL_DIR" if name.endswith("eval") else "MODEL_DIR"
  ended, given = demo(
      name, **{folder: "elsewhere", "TFDS_DATA_DIR": str(tmp_path)})
  assert ended.returncode == 0, ended.stderr
  assert f"--tfds_data_dir={tmp_path}" in given
  assert any(argument.endswith("_DIR='elsewhere'") for argument in given)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_missing_is_told(demo, name, tmp_path):
  ended, given = demo(name, "only one")
  assert ended.returncode == 2 and given is None
  assert re.fullmatch(
      rf"usage: {name}\.sh (MODEL|EVAL)_DIR .*\n", ended.stderr)
  missing = {"PRETRAINED_MODEL": "copy it from gs://t5-data/pretrained_models",
             "VOCABULARY_FILE": "copy it from gs://t5-data/vocabs"}
  if name.endswith("eval"):
    missing["PROMPT_FILE"] = "set PROMPT_FILE"
  for variable, words in missing.items():
    ended, given = demo(
        name, "folder", str(tmp_path), **{variable: "not/there"})
    assert ended.returncode == 2 and given is None
    assert ended.stderr.startswith("error: There is no not/there: ")
    assert words in ended.stderr and ended.stderr.count("\n") == 1


@pytest.mark.parametrize("size", ["small", "large"])
def test_other_sizes(demo, tmp_path, size):
  ended, given = demo("sst2-demo", "folder", str(tmp_path), SIZE=size)
  assert ended.returncode == 0, ended.stderr
  assert given[2].endswith(f"/models/t5_1_1_{size}_prompt.gin")
  ended, _ = demo("sst2-demo", "folder", str(tmp_path), SIZE=size,
                  PRETRAINED_MODEL="")
  assert f"no t5_1_1_lm100k_{size}/checkpoint_1100000: copy" in ended.stderr


def test_the_wheel_has_them(monkeypatch):
  told = {}
  monkeypatch.setattr(setuptools, "setup", told.update)
  monkeypatch.chdir(ROOT)
  if not (ROOT / "setup.py").exists():
    pytest.skip("installed: there is no setup.py here")
  runpy.run_path(str(ROOT / "setup.py"))
  assert "scripts/*.sh" in told["package_data"]["prompt_tuning"]
