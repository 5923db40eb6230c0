"""Tests of scripts.find_module. Oracle: the modules' own `__file__`."""

import email.mime.text
import os
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.scripts import find_module


def test_packages_and_modules(capsys):
  find_module.main(["numpy"])
  assert capsys.readouterr().out == os.path.dirname(np.__file__) + "\n"
  assert find_module.find("email.mime.text") == os.path.dirname(
      email.mime.text.__file__)
  configs = find_module.find("prompt_tuning.configs")
  assert os.path.isfile(os.path.join(configs, "runs/prompt_finetune.gin"))


def test_what_is_found_is_not_run(tmp_path, monkeypatch):
  (tmp_path / "broken_module").mkdir()
  (tmp_path / "broken_module/__init__.py").write_text("raise OSError")
  (tmp_path / "no_init").mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  assert find_module.find("broken_module") == str(tmp_path / "broken_module")
  assert find_module.find("no_init") == str(tmp_path / "no_init")


@pytest.mark.parametrize("name, words", [
    ("no_such_module", "install it"), ("no_such.module", "installed module"),
    ("sys", "built into Python"), ("", "installed module"),
    (".relative", "installed module")])
def test_bad_names(name, words):
  with pytest.raises(errors.UserError, match=words):
    find_module.find(name)


def test_the_command_ends_in_a_sentence():
  ended = subprocess.run(
      [sys.executable, "-m", "prompt_tuning.scripts.find_module", "no_such"],
      capture_output=True, text=True, timeout=60)
  assert ended.returncode == 2 and not ended.stdout
  assert ended.stderr.startswith("error: There is no module no_such")
