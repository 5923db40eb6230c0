"""What holds where T5X is not installed."""

import importlib.util
import re

import pytest

from prompt_tuning import command_line

RUNS = ("t5x_prompt_finetune", "t5x_prompt_eval", "t5x_prompt_infer",
        "t5x_trained_eval", "t5x_trained_infer")
ARCHITECTURES = ("flaxformer_t5_prompt", "flaxformer_decoder_only_prompt")
IMPORTS = re.compile(
    r"^\s*(?:from|import)\s+(?:t5x|flaxformer|prompt_tuning\.t5x)\b"
    r"|^\s*from\s+prompt_tuning\s+import\s+[^\n]*\bt5x\b", re.MULTILINE)


def test_nothing_else_imports_it():
  """Neither a module, nor a gin file that is not for T5X by its name."""
  package = command_line.PACKAGE
  found = {path for pattern in ("*.py", "*.gin")
           for path in package.rglob(pattern)
           if package / "t5x" not in path.parents
           and IMPORTS.search(path.read_text(encoding="utf-8"))}
  assert {path.stem for path in found} == {*RUNS, *ARCHITECTURES}


@pytest.mark.skipif(
    importlib.util.find_spec("t5x") is not None, reason="T5X is installed")
@pytest.mark.parametrize("name", RUNS)
def test_without_t5x_there_is_one_sentence(name, command):
  outcome = command(
      "train",
      "--gin_file=prompt_tuning/configs/models/t5_1_1_small_prompt.gin",
      f"--gin_file=prompt_tuning/configs/runs/{name}.gin")
  assert outcome.status == 2
  assert "T5X is not installed" in outcome.err
  assert "docs/t5x.md" in outcome.err
  assert len(outcome.err.strip().splitlines()) == 1
