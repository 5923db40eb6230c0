"""The prompts that come with the project, and those that the original released.

Oracles: each prompt's card, the embedded base, and numpy on the files.
"""

import pathlib

import jax
import numpy as np
import pytest

from prompt_tuning import command_line, pretrained, prompts
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import card, npy

FOLDER = pathlib.Path(__file__).parents[1] / "pretrained_prompts"
PROMPTS = sorted(FOLDER.rglob("*.npy"))
CONFIGS = command_line.PACKAGE / "configs"
RELEASED = ("sst2", "mrpc", "rte")
# The runs/ file that each of the embedded default's prompts was trained with.
RUNS = {"docstring_package": "quickstart",
        "docstring_summary": "docstring_summary"}
# The metric, and what the frozen model has without a prompt.
METRICS = {"docstring_package": ("accuracy", 10.0),
           "docstring_summary": ("token_f1", 9.037)}


@pytest.fixture(scope="module")
def fingerprints():
  """Of the bases that come with the package, by name."""
  return {pretrained.DIRECTORY.name: base_lib.fingerprint(pretrained.path())}


@pytest.mark.parametrize(
    "path", PROMPTS, ids=[str(p.relative_to(FOLDER)) for p in PROMPTS])
def test_every_prompt_has_its_card(path, fingerprints):
  known = card.read_card(card.card_path(path))
  assert known.base_model == path.parent.name
  expected = fingerprints.get(known.base_model, known.base_fingerprint)
  assert card.check(path, expected, known.base_model) == known  # the sha256
  values = npy.read(path, known.shape)
  assert known.dtype == str(np.load(path).dtype) == str(values.dtype)
  assert known.task and known.metric and known.settings and known.step > 0


@pytest.mark.parametrize("path", sorted(
    (FOLDER / pretrained.DIRECTORY.name).glob("*.npy")), ids=lambda p: p.stem)
def test_a_prompts_run_is_there(path, clean_gin):
  """What a card says of its training is what the runs/ file sets."""
  known = card.read_card(card.card_path(path))
  assert known.task == path.stem
  command_line.configure([
      f"--gin_file={CONFIGS}/runs/{RUNS[path.stem]}.gin",
      "--gin.MODEL_DIR='run'"])
  value = command_line.macro
  assert value("MIXTURE_OR_TASK_NAME") == known.task
  assert value("PROMPT_LENGTH") == known.shape[0]
  assert value("TRAIN_STEPS") == known.step == known.settings["total_steps"]
  assert known.settings["batch_size"] == value("BATCH_SIZE")
  assert known.settings["task_feature_lengths"] == value(
      "TASK_FEATURE_LENGTHS")
  metric, without = METRICS[known.task]
  assert known.metric[f"{known.task}/{metric}"] > without


def test_there_is_nothing_else():
  """A card without its prompt, or a file that nobody describes."""
  wanted = {FOLDER / "README.md", *PROMPTS, *(
      pathlib.Path(card.card_path(path)) for path in PROMPTS)}
  assert {p for p in FOLDER.rglob("*") if p.is_file()} <= wanted


@pytest.mark.parametrize("name", RELEASED)
def test_released_prompts_are_loaded_bit_by_bit(shared_data, clean_gin, name):
  path = shared_data / f"released_prompts/t5_1_1_lm100k_base/{name}.npy"
  command_line.configure([
      f"--gin_file={CONFIGS}/models/t5_1_1_base_prompt.gin",
      f"--gin_file={CONFIGS}/prompts/from_file.gin",
      "--gin.VOCABULARY_FILE='spiece.model'", f"--gin.PROMPT_FILE='{path}'"])
  module = clean_gin.get_configurable(prompts.Prompt)()
  found = module.init(
      jax.random.key(0), np.ones((1, 2), np.int32), np.ones((1, 2, 768)))
  assert found["params"]["prompt"].dtype == np.float32
  np.testing.assert_array_equal(found["params"]["prompt"], np.load(path))
  # They have no card, which is no reason to refuse them.
  assert card.check(path, "0" * 64, "t5_1_1_base") is None
