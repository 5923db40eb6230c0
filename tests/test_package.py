"""What importing costs, and what the wheel must hold."""

import pathlib
import subprocess
import sys

import pytest

from prompt_tuning import pretrained

HEAVY = ("tensorflow", "seqio", "torch", "transformers")


@pytest.mark.parametrize("module", [
    "prompt_tuning", "prompt_tuning.models.t5", "prompt_tuning.train.loop",
    "prompt_tuning.data.tasks", "prompt_tuning.eval", "prompt_tuning.infer"])
def test_imports_bring_no_other_framework(module):
  code = (f"import sys, {module}\n"
          f"found = [m for m in {HEAVY} if m in sys.modules]\n"
          "assert not found, found")
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_does_not_import_jax():
  subprocess.run(
      [sys.executable, "-c",
       "import sys, prompt_tuning; assert 'jax' not in sys.modules"],
      check=True, timeout=60)


def test_the_embedded_default_fits_its_budget():
  files = list(pathlib.Path(pretrained.path()).iterdir())
  model = [f for f in files if f.suffix in (".safetensors", ".model")]
  assert len(model) == 2
  assert sum(f.stat().st_size for f in model) <= 8e6


def test_the_embedded_default_has_a_row_for_every_id():
  assert pretrained.vocabulary().vocab_size == 4096
