"""Every published figure of prefix tuning is in one gin file's header.

Oracle: tables 1 to 5 of Li & Liang 2021 (arXiv 2101.00190), the prefixes of Hu
et al. 2021 (arXiv 2106.09685), and what is reported for the assignment.
"""

import pytest

from prompt_tuning import command_line
from prompt_tuning.models import decoder_only
from prompt_tuning.train import epochs
from prompt_tuning.train import state as state_lib

CONFIGS = command_line.PACKAGE / "configs"

# Rows of the tables, as their columns follow on one another.
FIGURES = {
    "runs/prefix_e2e": (
        "68.2 8.62 46.2 71.0 2.47", "68.1 8.59 46.0 70.8 2.41",
        "68.9 8.71 46.1 71.3 2.47", "66.3 8.41 45.0 69.8 2.40",
        "69.7 8.81 46.1 71.4 2.49", "68.5 8.78 46.0 69.9 2.45",
        "70.3 8.85 46.2 71.7 2.47", "68.6 8.70 45.3 70.8 2.37",
        "69.7 BLEU on GPT-2 medium, 70.3 on GPT-2 large"),
    "runs/prefix_webnlg": (
        "64.2 27.7 46.5 .45 .30 .38 .33 .76 .53",
        "53.6 18.9 36.0 .38 .23 .31 .49 .99 .72",
        "60.4 48.3 54.9 .43 .38 .41 .35 .45 .39",
        "54.5 45.1 50.2 .39 .36 .38 .40 .46 .43",
        "62.9 45.6 55.1 .44 .38 .41 .35 .49 .41",
        "65.3 43.1 55.5 .46 .38 .42 .33 .53 .42",
        "63.4 47.7 56.3 .45 .39 .42 .34 .48 .40",
        "63.9 52.8 57.1 .46 .41 .44", "63.1 44.1 54.4", "64.2 47.0 56.4"),
    "runs/prefix_dart": (
        "46.2 .39 .46 .50 .94 .39", "41.0 .34 .56 .43 .93 .21",
        "45.2 .38 .46 .50 .94 .39", "42.4 .36 .48 .47 .94 .33",
        "46.4 .38 .46 .50 .94 .39", "47.0 .39 .46 .51 .94 .40",
        "46.7 .39 .45 .51 .94 .40",
        "45.7 BLEU on GPT-2 medium, 46.5 on GPT-2 large"),
    "runs/prefix_xsum": (
        "45.14 22.27 37.25", "43.80 20.93 36.05", "42.92 20.03 35.05",
        "38.15 15.51 30.26", "39.23 16.74 31.51", "39.20 16.35 31.15",
        "39.41 16.87 31.47"),
    "prompts/embedding_only": (
        "48.1 3.33 32.1 60.2 1.10", "62.2 6.70 38.6 66.4 1.75",
        "61.9 7.11 39.3 65.6 1.85"),
    "prompts/infix": (
        "67.9 8.63 45.8 69.4 2.42", "67.2 8.48 45.8 69.9 2.40",
        "66.7 8.47 45.8 70.0 2.42"),
    "runs/table_to_text": (
        "13.4207 16.1767", "15.5933 18.1553", "19.2093 17.9956",
        "16.0280 14.3532", "11.0139 12.4284", "28.8313 21.1418",
        "30.3896 30.3138", "1.3689")}


@pytest.fixture(scope="module")
def headers():
  """What stands on top of each gin file, on one line."""
  return {
      path.relative_to(CONFIGS).with_suffix("").as_posix(): " ".join(
          path.read_text().split("\n\n")[0].replace("#", " ").split())
      for path in CONFIGS.rglob("*.gin")}


@pytest.mark.parametrize("name", FIGURES)
def test_rows_are_in_one_header(headers, name):
  for row in FIGURES[name]:
    assert [file for file, text in headers.items() if row in text] == [name]
    assert headers[name].count(row) == 1


# Rates, epochs and batches behind the figures, or the methods, of table 5.
SETTINGS = {
    "runs/prefix_e2e": (
        "2.49 8e-5, 5, 10", "2.47 5e-5, 5, 10", "2.41 5e-5, 5, 10",
        "2.47 5e-5, 5, 5 (3 %)", "2.40 8e-5, 10, 5 (0.1 %)"),
    "runs/prefix_webnlg": (
        "prompts/full.gin 1e-5, 10, 6", "prompts/top_layers.gin 5e-5, 10, 9",
        "prompts/adapter.gin 5e-5, 5, 5 (3 %)",
        "prompts/adapter.gin 5e-5, 10, 5 (0.1 %)"),
    "runs/prefix_dart": (
        "46.4 .38 .46 .50 .94 .39 5e-5, 10, 5",
        "46.2 .39 .46 .50 .94 .39 1e-5, 10, 6",
        "41.0 .34 .56 .43 .93 .21 5e-5, 5, 5",
        "45.2 .38 .46 .50 .94 .39 5e-5, 5, 5 (3 %)",
        "42.4 .36 .48 .47 .94 .33 8e-5, 5, 5 (0.1 %)")}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_table_fives(headers, name):
  for row in SETTINGS[name]:
    assert row in headers[name]


# How a header says that other methods are run, and what they then train: a
# closed form of GPT-2 medium's sizes, and its share of 354,823,168.
METHODS = {
    "full": ([], 354_823_168, 1.0),
    "3 %": (["ADAPTER_DESIGN='projections'", "ADAPTER_WIDTH=100"],
            48 * (2 * 1024 * 100 + 100 + 1024), 0.028),
    "0.1 %": (["ADAPTER_WIDTH=6"],
              24 * (2 * 1024 * 6 + 6 + 1024 + 2 * 1024), 0.001)}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_in_the_place_of_a_prefix(clean_gin, tmp_path, method):
  flags, count, share = METHODS[method]
  (tmp_path / "train_formatted.jsonl").write_text(
      '{"context": "a", "completion": "b"}\n' * 17)
  command_line.configure([
      *(f"--gin_file={CONFIGS}/{name}.gin" for name in (
          "models/gpt2_medium",
          f"prompts/{'full' if method == 'full' else 'adapter'}",
          "runs/prefix_e2e")),
      *(f"--gin.{flag}" for flag in (
          *flags, "SCAN_LAYERS=True", "LEARNING_RATE=1e-4", "TRAIN_EPOCHS=10",
          "BATCH_SIZE=5", "LOSS_NORMALIZING_FACTOR='num_tokens'",
          "MODEL_DIR='run'", "INITIAL_CHECKPOINT_PATH='base'",
          f"NLG_FOLDER={str(tmp_path)!r}"))])
  model = clean_gin.get_configurable(decoder_only.DecoderOnlyModel)()
  assert model.loss_normalizing_factor == "num_tokens"
  trained, _ = state_lib.split(
      model.abstract()[0], command_line.macro("TRAINABLE_REGEX"))
  sizes = sum(leaf.size for leaf in state_lib.flatten(trained).values())
  assert sizes == count
  assert round(sizes / 354_823_168, 3) == share
  assert command_line.macro("WEIGHT_DECAY") == 0.0
  assert command_line.macro("WARMUP_STEPS") == 0
  with clean_gin.config_scope("whole"):
    assert clean_gin.get_configurable(epochs.steps)() == 10 * 4
