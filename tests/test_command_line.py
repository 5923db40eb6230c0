"""gin's flags, and what a slip of the pen gets to read.

Mistakes end in one sentence on standard error, exit status 2, and no file.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from prompt_tuning import command_line, errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = "prompt_tuning/configs"
MODEL = f"--gin_file={CONFIGS}/models/t5_1_1_default_prompt.gin"
RUN = f"--gin_file={CONFIGS}/runs/prompt_finetune.gin"
DATA = ["--gin.MIXTURE_OR_TASK_NAME='docstring_package'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}"]
STEPS = "--gin.TRAIN_STEPS=2"
FOLDER = "--gin.MODEL_DIR='run'"
ALL = [MODEL, RUN, *DATA, STEPS, FOLDER]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
  """Runs in an empty folder, so that anything that is written shows."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def refused(command, folder, *arguments):
  """The sentence of a command that must refuse its arguments."""
  outcome = command("train", *arguments)
  assert outcome.status == 2
  assert outcome.out == ""
  assert outcome.err.count("\n") == 1, outcome.err
  assert outcome.err.startswith("error: ")
  assert list(folder.iterdir()) == []
  return outcome.err.removeprefix("error: ").rstrip("\n")


# ------------------------------------------------------------ what is accepted


def test_files_and_bindings_in_order_the_last_wins(clean_gin, tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text("BATCH_SIZE = 16\nSAVE_PERIOD = 5\n")
  command_line.configure([
      *ALL, f"--gin_file={mine}", "--gin.EVAL_PERIOD=3",
      "--gin.SAVE_PERIOD=7", "--gin.SAVE_PERIOD=9",
      "--gin_bindings=LOG_PERIOD = 2"])
  assert [command_line.macro(name) for name in (
      "BATCH_SIZE", "SAVE_PERIOD", "EVAL_PERIOD", "LOG_PERIOD")] == [
          16, 9, 3, 2]


def test_a_macro_of_a_macro_is_followed(clean_gin):
  command_line.configure([*ALL, "--gin.BATCH_SIZE=24"])
  assert command_line.macro("EVAL_BATCH_SIZE") == 24


@pytest.mark.parametrize("arguments", [
    ["--gin.EVAL_SPLIT='test'"], ["--gin.EVAL_SPLIT", "'test'"],
    ['--gin.EVAL_SPLIT="test"'], ["--gin_bindings", "EVAL_SPLIT = 'test'"],
    ["--gin.EVAL_SPLIT = 'test'"]])
def test_ways_to_write_a_binding(clean_gin, arguments):
  command_line.configure([*ALL, *arguments])
  assert command_line.macro("EVAL_SPLIT") == "test"


def test_values_may_hold_what_flags_are_made_of(clean_gin):
  value = "--a=b, {c}: 'd'"
  command_line.configure([*ALL, f"--gin.EVAL_SPLIT={value!r}"])
  assert command_line.macro("EVAL_SPLIT") == value


def test_search_paths_are_looked_through_in_order(clean_gin, tmp_path):
  for name, size in (("a", 1), ("b", 2)):
    (tmp_path / name).mkdir()
    (tmp_path / name / "size.gin").write_text(f"BATCH_SIZE = {size}\n")
  (tmp_path / "b" / "only.gin").write_text("EVAL_PERIOD = 7\n")
  command_line.configure([
      *ALL, f"--gin_search_paths={tmp_path}/a,{tmp_path}/b",
      "--gin_file=size.gin", "--gin_file=only.gin"])
  assert command_line.macro("BATCH_SIZE") == 1
  assert command_line.macro("EVAL_PERIOD") == 7


def test_the_package_is_on_the_search_path_wherever_one_is(
    clean_gin, empty_folder):
  assert not (empty_folder / "prompt_tuning").exists()
  command_line.configure(ALL)
  assert command_line.macro("TRAIN_STEPS") == 2


def test_a_users_module_is_found_in_the_working_directory(
    clean_gin, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
  (tmp_path / "my_settings_of_this_test.py").write_text("SIZE = 3\n")
  (tmp_path / "mine.gin").write_text(
      "import my_settings_of_this_test\nBATCH_SIZE = 8\n")
  command_line.configure([*ALL, "--gin_file=mine.gin"])
  assert command_line.macro("BATCH_SIZE") == 8


def test_data_dir_of_tensorflow_datasets(clean_gin, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "before")
  command_line.configure([*ALL, "--tfds_data_dir=/data"])
  assert os.environ["TFDS_DATA_DIR"] == "/data"


def test_files_of_other_folders_may_come_anywhere(clean_gin, tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text("EVAL_PERIOD = 3\n")
  command_line.configure([f"--gin_file={mine}", *ALL])
  assert command_line.macro("EVAL_PERIOD") == 1000


# ------------------------------------------------------------- what is refused


@pytest.mark.parametrize("arguments, sentence", [
    ([], "No --gin_file is given"),
    ([*ALL, "--steps=3"], "Unknown argument '--steps=3'.*--gin.NAME=value"),
    ([*ALL, "more"], "Unknown argument 'more'"),
    ([*ALL, "--gin.TRAIN_STEPS"], "--gin.TRAIN_STEPS has no value"),
    ([*ALL, "--gin.TRAIN_STEPS="], "--gin.TRAIN_STEPS= has no value"),
    ([*ALL, "--gin_bindings=TRAIN_STEPS"],
     "--gin_bindings=TRAIN_STEPS has no value"),
    (["--gin_file=models/t5_1_1_bse_prompt.gin", RUN],
     r"t5_1_1_bse_prompt.gin is not found.*models/t5_1_1_base_prompt.gin"),
    ([MODEL, "--gin_file=nothing_like_it_at_all"],
     "nothing_like_it_at_all is not found"),
    ([*ALL, "--gin_search_paths=nowhere"], "nowhere, which is not a folder"),
])
def test_flags(command, empty_folder, arguments, sentence):
  assert re.search(sentence, refused(command, empty_folder, *arguments))


@pytest.mark.parametrize("binding, sentence", [
    ("PROMPT_LENGHT=3", "Nothing uses PROMPT_LENGHT.*PROMPT_LENGTH"),
    ("CLASS_LABELS=['a']", "Nothing uses CLASS_LABELS.*add the gin file"),
    ("utils.DatasetConfig.bach_size=3",
     "no parameter 'bach_size'.*did you mean batch_size"),
    ("utils.DatasetConfg.batch_size=3",
     "gin knows no 'utils.DatasetConfg'.*utils.DatasetConfig"),
    ("MODEL=@models.EncoderDecodrModel()",
     "gin knows no 'models.EncoderDecodrModel'.*models.EncoderDecoderModel"),
    ("no.such.module.function=3", "gin knows no 'no.such.module'"),
    ("TRAIN_STEPS=many", "many is not a value; texts stand in quotes"),
    ("TRAIN_STEPS=[1, 2", r"--gin.TRAIN_STEPS=\[1, 2 cannot be read"),
    ("MODEL=%NOWHERE", "NOWHERE has no value but MODEL needs it"),
    ("utils.RestoreCheckpointConfig.assignment_map=(('a', 'b'),)",
     "assignment_map=.* renames parameters"),
    ("partitioning.PjitPartitioner.model_parallel_submesh=4",
     r"submesh=4 is not a submesh such as \(4, 4, 1, 2\)"),
])
def test_names_and_values(command, empty_folder, binding, sentence):
  found = refused(command, empty_folder, *ALL, f"--gin.{binding}")
  assert re.search(sentence, found), found
  assert len(found) < 500


@pytest.mark.parametrize("missing, name", [
    (STEPS, "TRAIN_STEPS"), (FOLDER, "MODEL_DIR"),
    (DATA[0], "MIXTURE_OR_TASK_NAME"), (DATA[1], "TASK_FEATURE_LENGTHS")])
def test_missing_macro(command, empty_folder, missing, name):
  found = refused(
      command, empty_folder, *(a for a in ALL if a != missing))
  assert re.fullmatch(
      rf"{name} has no value but \S+ needs it: give it as "
      rf"--gin.{name}=value\.", found)


def test_template_without_a_size(command, empty_folder):
  found = refused(
      command, empty_folder,
      f"--gin_file={CONFIGS}/models/t5_1_1_prompt.gin", *ALL[1:],
      "--gin.VOCABULARY_FILE='v'", "--gin.INITIAL_CHECKPOINT_PATH='c'")
  assert re.match(r"[A-Z_]+ has no value but Config\.\S+ needs it", found)
  assert "add the gin file that sets it" in found


def test_size_before_its_template(command, empty_folder):
  found = refused(
      command, empty_folder, f"--gin_file={CONFIGS}/models/sizes/small.gin",
      f"--gin_file={CONFIGS}/models/t5_1_1_prompt.gin", *ALL[1:])
  assert found.startswith(
      f"Move --gin_file={CONFIGS}/models/t5_1_1_prompt.gin before "
      f"--gin_file={CONFIGS}/models/sizes/small.gin: ")


@pytest.mark.parametrize("later, earlier", [
    ("runs/prompt_finetune", "models/t5_1_1_default_prompt"),
    ("runs/prompt_finetune", "prompts/from_class_labels"),
    ("prompts/from_class_labels", "models/t5_1_1_default_prompt"),
    ("encoders/minilm_l6", "prompts/from_class_labels"),
    ("models/decoding/beam_search", "models/sizes/small"),
    ("runs/prompt_finetune", "models/decoding/beam_search")])
def test_order_rule(command, empty_folder, later, earlier):
  found = refused(
      command, empty_folder, f"--gin_file={CONFIGS}/{later}.gin",
      f"--gin_file={CONFIGS}/{earlier}.gin", *ALL[2:])
  assert found.startswith(
      f"Move --gin_file={CONFIGS}/{earlier}.gin before "
      f"--gin_file={CONFIGS}/{later}.gin")
  assert ("order: models, prompts, encoders, models/sizes, models/decoding, "
          "runs") in found


def test_order_rule_knows_where_a_file_lies(command, empty_folder):
  """Not how it was written: here from a search path."""
  found = refused(
      command, empty_folder, f"--gin_search_paths={ROOT / CONFIGS}",
      "--gin_file=runs/prompt_finetune.gin",
      "--gin_file=models/t5_1_1_default_prompt.gin", *ALL[2:])
  assert found.startswith(
      "Move --gin_file=models/t5_1_1_default_prompt.gin before "
      "--gin_file=runs/prompt_finetune.gin")


@pytest.mark.parametrize("path", [
    "prompt_tuning/configs/extended/runs/ia3_finetune.gin",
    "prompt_tuning/extended/perceptron/configs/runs/ia3_finetune.gin"])
def test_folders_of_the_original(command, empty_folder, path):
  """What it keeps under `extended` is beside the rest here."""
  found = refused(command, empty_folder, f"--gin_file={path}", MODEL, *ALL[2:])
  assert f"before --gin_file={CONFIGS}/runs/ia3_finetune.gin" in found


def test_run_file_alone(command, empty_folder):
  found = refused(command, empty_folder, RUN, *ALL[2:])
  assert found.startswith(
      "INITIAL_CHECKPOINT_PATH has no value but PROMPT_BASE needs it: give it "
      "as --gin.INITIAL_CHECKPOINT_PATH=")


@pytest.mark.parametrize("content, sentence", [
    ("BATCH_SIZE = \n", "gin: .*mine.gin"),
    ("import no_such_module_here\n", "imports what is not installed"),
    ("include 'no/such/file.gin'\n", "no/such/file.gin"),
    ("utils.DatasetConfig.bach_size = 3\n",
     r"no parameter 'bach_size' \(.*mine.gin line 1\)"),
    ("nothing.Here.x = 3\n", r"gin knows no 'nothing.Here' \(.*mine.gin"),
])
def test_mistakes_in_a_file(command, tmp_path, content, sentence):
  mine = tmp_path / "mine.gin"
  mine.write_text(content)
  outcome = command("train", *ALL, f"--gin_file={mine}")
  assert outcome.status == 2
  assert outcome.err.count("\n") == 1
  assert re.search(sentence, outcome.err), outcome.err
  assert list(tmp_path.iterdir()) == [mine]


def test_an_argument_that_nothing_binds(command, empty_folder):
  """gin's own words are many lines; ours name what to bind."""
  found = refused(
      command, empty_folder, *ALL, "--gin.OPTIMIZER=@schedules.linear_decay()")
  assert re.match(r"linear_decay needs .*'base_learning_rate'", found)
  assert "--gin.linear_decay.NAME=value" in found


def test_model_without_a_run(command, empty_folder):
  outcome = command("eval", MODEL)
  assert outcome.status == 2
  # The second, once some file of this process has named the function.
  assert re.search("No gin file sets up 'evaluate'.*configs/runs|"
                   "evaluate needs 'model'", outcome.err)
  assert outcome.err.count("\n") == 1


def test_a_bug_of_ours_is_not_taken_for_a_mistake(clean_gin):
  def broken():
    raise ValueError("inside")

  clean_gin.external_configurable(broken)
  with pytest.raises(ValueError, match="inside") as raised:
    command_line.call(broken)
  assert not isinstance(raised.value, errors.UserError)


def test_commands_are_modules(tmp_path):
  """The three processes start, refuse, and take their status from it."""
  for name in ("train", "eval", "infer"):
    done = subprocess.run(
        [sys.executable, "-m", f"prompt_tuning.{name}", "--gin_file=x.gin"],
        cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --gin_file x.gin is not found")
    assert done.stderr.count("\n") == 1
  assert list(tmp_path.iterdir()) == []
