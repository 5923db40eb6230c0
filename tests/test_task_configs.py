"""Tasks and runs for decoder-only models, as their gin files set them up.

Oracles: the data's own files, and the numbers of PEFT's tutorial.
"""

import gzip
import math
import re
import shlex

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import command_line, errors
from prompt_tuning.compare import cells, entries
from prompt_tuning.data import tasks
from prompt_tuning.decoding import beam, sampling
from prompt_tuning.scripts import compare_methods
from prompt_tuning.train import (
  adafactor,
  epochs,
  optimizers,
  schedules,
  settings,
)

CONFIGS = command_line.PACKAGE / "configs"


@pytest.fixture
def configure(clean_gin):
  """Reads gin files of the package, by names without `.gin`, and macros."""

  def read(*names, **macros):
    command_line.configure([
        *(f"--gin_file={CONFIGS}/{name}.gin" for name in names),
        *(f"--gin.{name}={value!r}" for name, value in macros.items())])
    return clean_gin

  return read


def read_task(gin, split):
  """The task that the gin files name, its first and all of its examples."""
  with gin.unlock_config():
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from prompt_tuning.train import settings as utils\n"
        "utils.DatasetConfig.mixture_or_task_name = %MIXTURE_OR_TASK_NAME\n"
        "utils.DatasetConfig.task_feature_lengths = %TASK_FEATURE_LENGTHS\n")
  dataset = gin.get_configurable(settings.DatasetConfig)()
  task = tasks.get_task(dataset.mixture_or_task_name)
  return task, list(task.examples(split))


def test_sst2(configure, shared_data):
  task, examples = read_task(configure(
      "tasks/sst2_causal", TRAIN_FILE=str(shared_data / "sst2/train.tsv"),
      VALIDATION_FILE=str(shared_data / "sst2/dev.tsv")), "validation")
  assert len(examples) == 872
  assert examples[0]["inputs"] == (
      "Review: one long string of cliches\nSentiment:")
  assert examples[0]["targets"] == " negative"
  assert {row["targets"] for row in examples} == set(task.label_texts) == {
      " negative", " positive"}


def test_twitter_complaints(configure, shared_data):
  path = shared_data / "raft/train.csv"
  task, examples = read_task(
      configure("tasks/raft_twitter_complaints", TRAIN_FILE=str(path)), "train")
  assert examples[0]["inputs"] == (
      "Tweet text : @HMRCcustomers No this is my first job Label : ")
  labels = [row["targets"] for row in examples]
  assert labels.count("no complaint") == 33
  assert labels.count("complaint") == 17
  assert task.label_texts == ("complaint", "no complaint")


def test_unlabelled_tweets(configure, shared_data):
  path = shared_data / "raft/test_unlabeled.csv"
  _, examples = read_task(configure(
      "tasks/raft_twitter_complaints", TEST_FILE=str(path), TARGETS=None),
                          "test")
  assert len(examples) == 3399
  assert {row["targets"] for row in examples} == {""}


def test_e2e(configure, shared_data):
  task, examples = read_task(configure(
      "tasks/e2e", TRAIN_FILE=str(shared_data / "e2e/train.txt.gz"),
      VALIDATION_FILE=str(shared_data / "e2e/valid.txt.gz")), "validation")
  assert len(examples) == 547
  first = examples[0]
  assert first["inputs"] == (
      "name : Alimentum | area : city centre | family friendly : no\nText:")
  assert first["targets"] == first["references"][0]
  assert re.match(r" \S.*\S$", first["targets"])
  found = tasks.evaluate(
      task, examples, [row["targets"] for row in examples],
      [row["references"][-1].strip() for row in examples])
  assert found == {"bleu": pytest.approx(100.0)}


def test_e2es_test_set_keeps_references_together(configure, shared_data):
  """Oracle: the file's own lines; 630 tables, as the papers count them."""
  path = shared_data / "e2e/test.txt.gz"
  with gzip.open(path, "rt", encoding="utf-8") as file:
    lines = [line.split("||") for line in file if line.strip()]
  task, examples = read_task(configure(
      "tasks/e2e_five_metrics", VALIDATION_FILE=str(path)), "validation")
  assert len(examples) == len({table for table, _ in lines}) == 630
  assert [fn.__name__ for fn in task.metric_fns] == [
      "bleu_mteval13a", "nist", "meteor", "rouge_l", "cider"]
  found = [(row["inputs"].removesuffix("\nText:"), text.strip())
           for row in examples for text in row["references"]]
  assert len(found) == 4693
  assert sorted(found) == sorted(
      (table, text.strip()) for table, text in lines)


def test_e2e_by_its_challenges_metrics(configure, tmp_path):
  path = tmp_path / "dev.txt"
  path.write_text("a : 1||x y z.\na : 1||p q r s t u\na : 2||v w x y z\n")
  gin = configure("tasks/e2e", VALIDATION_FILE=str(path))
  with gin.unlock_config():
    gin.parse_config("METRICS = %E2E_METRICS\nMETEOR_WORDNET = 'nowhere'")
  task, examples = read_task(gin, "validation")
  with pytest.raises(errors.UserError, match="nowhere is no WordNet"):
    tasks.evaluate(task, examples, ["", ""], ["", ""])
  with gin.unlock_config():
    gin.parse_config("METEOR_WORDNET = None\nMETEOR_JAR = 'no.jar'\n"
                     "METEOR = @meteor_jar.meteor_jar")
  task, examples = read_task(gin, "validation")
  with pytest.raises(errors.UserError, match="METEOR 1.5"):
    tasks.evaluate(task, examples, ["", ""], ["", ""])
  with gin.unlock_config():
    gin.parse_config("METEOR = @meteor.meteor")
  task, examples = read_task(gin, "validation")
  found = tasks.evaluate(
      task, examples, ["", ""], ["P q r s t u", "v w x y z"])
  meteor = (found.keys() & {"meteor_wordnet", "meteor_exact_stem"}).pop()
  # CIDEr: of the first text's references one is the output and one has none of
  # it. NIST: of 15 words x, y and z are two each; what follows is certain.
  assert found == {
      "bleu_mteval13a": pytest.approx(100), "rouge_l": pytest.approx(100),
      meteor: pytest.approx(100, abs=2),
      "cider": pytest.approx(10 * (1 / 2 + 1) / 2),
      "nist": pytest.approx((8 * math.log2(15) + 3 * math.log2(15 / 2)) / 11)}


@pytest.fixture
def tutorial(configure, tmp_path):
  (tmp_path / "train.csv").write_text(
      "Tweet text,Label,ID\n"
      + "".join(f"tweet {i},complaint,{i}\n" for i in range(50)))
  return lambda **macros: configure(
      "models/causal_lm_from_checkpoint_prompt", "runs/peft_tutorial",
      TRAIN_FILE=str(tmp_path / "train.csv"), MODEL_DIR="run",
      INITIAL_CHECKPOINT_PATH="base", **macros)


def test_the_tutorials_steps_and_rates(tutorial):
  gin = tutorial()
  for name, value in (("PROMPT_LENGTH", 8), ("BATCH_SIZE", 8),
                      ("LEARNING_RATE", 3e-2), ("EVAL_SPLIT", "train")):
    assert gin.query_parameter(f"%{name}") == value
  schedule = gin.get_configurable(schedules.linear_decay)()
  # torch: 3e-2 * (350 - step) / 350 with 7 batches in each of 50 epochs.
  for step in (0, 1, 175, 349, 350):
    np.testing.assert_allclose(
        schedule(step), 3e-2 * (350 - step) / 350, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model, optimizer, rate", [
    ("t5_1_1_default_prompt", adafactor.Adafactor, 0.3),
    ("causal_lm_from_checkpoint_prompt", optimizers.AdamW, 1e-2)])
def test_the_recommended_recipe(configure, model, optimizer, rate):
  """A tenth of the steps up, then down to 0, for either kind of model.

  Oracle: the steps of one number with the optimizer itself at these rates.
  """
  gin = configure(
      f"models/{model}", "prompts/from_sampled_vocab",
      "runs/prompt_finetune_recommended", TRAIN_STEPS=20, MODEL_DIR="run",
      INITIAL_CHECKPOINT_PATH="base", MIXTURE_OR_TASK_NAME="docstring_package",
      TASK_FEATURE_LENGTHS={"inputs": 8, "targets": 8})
  assert gin.query_parameter("%INITIAL_STEP") == 0
  rates = [rate * (step / 2 if step < 2 else (20 - step) / 18)
           for step in range(21)]
  made = gin.get_configurable(optimizer)()
  plain = optimizer(
      lambda step: jnp.asarray(rates)[step], **{
          "multiply_by_parameter_scale": False, "weight_decay_rate": 1e-5}
      if optimizer is adafactor.Adafactor else {})
  found, expected = ({"x": jnp.full((2, 3), 2.0)} for _ in range(2))
  states = made.init(found), plain.init(expected)
  for step in range(20):
    gradient = {"x": jnp.full((2, 3), 1.0 + step)}
    one, first = made.update(gradient, states[0], found)
    two, second = plain.update(gradient, states[1], expected)
    found, expected = (optax.apply_updates(a, b) for a, b in (
        (found, one), (expected, two)))
    states = first, second
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-5)
  assert abs(float(found["x"][0, 0]) - 2.0) > rate


@pytest.mark.parametrize("run,batch_size,data", [
    ("sst2_smollm2", 16, ("sst2/train.tsv", "sst2/dev.tsv")),
    ("e2e_smollm2", 8, ("e2e/train.txt.gz", "e2e/valid.txt.gz")),
])
def test_runs_on_smollm2(configure, shared_data, run, batch_size, data):
  """A prompt of 20 vectors of words, 300 steps, up for 30 and down to 0."""
  train, validation = (str(shared_data / name) for name in data)
  gin = configure(
      "models/smollm2_135m_prompt", f"runs/{run}", TRAIN_FILE=train,
      VALIDATION_FILE=validation, MODEL_DIR="run",
      INITIAL_CHECKPOINT_PATH="base")
  for name, value in (("PROMPT_LENGTH", 20), ("BATCH_SIZE", batch_size),
                      ("TRAIN_STEPS", 300), ("REPEAT_PROMPT_TEXT", True)):
    assert gin.query_parameter(f"%{name}") == value
  schedule = gin.get_configurable(schedules.linear_decay)()
  np.testing.assert_allclose(
      [schedule(step) for step in (0, 15, 30, 165, 300)],
      [0.0, 5e-3, 1e-2, 5e-3, 0.0], atol=1e-9)


@pytest.mark.parametrize("run,file,steps", [
    ("mbpp", {"MBPP_FILE": "mbpp/mbpp_release_v1.jsonl"}, 610),
    ("cruxeval_input", {"CRUXEVAL_FILE": "cruxeval/cruxeval.jsonl"}, 250),
    ("cruxeval_output", {"CRUXEVAL_FILE": "cruxeval/cruxeval.jsonl"}, 250),
])
def test_lopas_runs_on_code(configure, shared_data, run, file, steps):
  """lopa_training: 8 examples a step, 10 and 5 epochs, 1e-3 throughout."""
  gin = configure(
      "models/phi_2_prompt", f"runs/{run}", MODEL_DIR="run",
      INITIAL_CHECKPOINT_PATH="base",
      **{name: str(shared_data / path) for name, path in file.items()})
  for name, value in (("PROMPT_LENGTH", 10), ("BATCH_SIZE", 8),
                      ("LEARNING_RATE", 1e-3), ("RANDOM_SEED", 9876)):
    assert gin.query_parameter(f"%{name}") == value
  assert gin.query_parameter(
      "prompt_init/flax.linen.initializers.normal.stddev") == 1.0
  with gin.unlock_config(), gin.config_scope("whole"):
    assert gin.get_configurable(epochs.steps)() == steps


@pytest.mark.parametrize("name", ["nlg_e2e", "nlg_webnlg", "nlg_dart"])
def test_lopas_runs_on_tables(configure, tmp_path, name):
  (tmp_path / "train_formatted.jsonl").write_text(
      '{"context": "a", "completion": "b"}\n' * 17)
  gin = configure(
      "models/gpt2_medium_prompt", f"runs/{name}", MODEL_DIR="run",
      INITIAL_CHECKPOINT_PATH="base", NLG_FOLDER=str(tmp_path))
  with gin.unlock_config(), gin.config_scope("whole"):
    assert gin.get_configurable(epochs.steps)() == 5 * 3
  task, examples = read_task(gin, "train")
  assert task.name == name
  assert examples[0]["inputs"] == "a<|endoftext|>"


@pytest.mark.parametrize("name,batch,length,rate,total", [
    ("prefix_e2e", 10, 5, 8e-5, 10), ("prefix_webnlg", 5, 5, 5e-5, 20),
    ("prefix_dart", 5, 10, 5e-5, 40)])
def test_prefix_tunings_runs_on_tables(
    configure, tmp_path, name, batch, length, rate, total):
  """prefix_training: table 5 of the paper; 17 examples, 5 or 10 epochs."""
  (tmp_path / "train_formatted.jsonl").write_text(
      '{"context": "a", "completion": "b"}\n' * 17)
  gin = configure(
      "models/gpt2_medium", "prompts/prefix", f"runs/{name}",
      MODEL_DIR="run", INITIAL_CHECKPOINT_PATH="base",
      NLG_FOLDER=str(tmp_path))
  for macro, value in (("BATCH_SIZE", batch), ("PREFIX_LENGTH", length),
                       ("LEARNING_RATE", rate), ("RANDOM_SEED", 101)):
    assert gin.query_parameter(f"%{macro}") == value
  with gin.unlock_config(), gin.config_scope("whole"):
    assert gin.get_configurable(epochs.steps)() == total
  task, examples = read_task(gin, "train")
  assert task.name == name.replace("prefix", "nlg")
  assert examples[0]["inputs"] == " a <|endoftext|>"


def test_webnlgs_texts_by_the_command_of_its_run(configure, clean_gin):
  """prefix_webnlg's second command: as it was trained, on the test set."""
  head = (CONFIGS / "runs/prefix_webnlg.gin").read_text()
  command = head.split("scripts.generate\n#")[1].split("#   python")[0]
  flags = shlex.split(command.replace("\n#", " "))
  clean_gin.clear_config()
  command_line.configure(flags)
  gin = clean_gin
  assert gin.query_parameter("%RUN_DIR") == "runs/prefix_webnlg"
  assert gin.query_parameter("%EVAL_SPLIT") == "test"
  used = {name: gin.query_parameter(f"%{name}") for name in (
      "PREFIX_LENGTH", "TEMPLATE", "TASK_FEATURE_LENGTHS", "NLG_FOLDER")}
  clean_gin.clear_config()
  configure(
      "models/gpt2_medium", "prompts/prefix", "runs/prefix_webnlg",
      MODEL_DIR="run", INITIAL_CHECKPOINT_PATH="base", NLG_FOLDER="webnlg")
  assert used == {name: gin.query_parameter(f"%{name}") for name in used}


@pytest.mark.parametrize("name,macro,expected", [
    ("nlg_e2e", "e2e_metrics",
     ["bleu_mteval13a", "cider", "meteor", "nist", "rouge_l"]),
    ("nlg_webnlg", "triples_metrics", ["meteor", "multi_bleu", "ter_webnlg"]),
    ("nlg_dart", "triples_metrics", ["meteor", "multi_bleu", "ter_webnlg"]),
])
def test_tables_by_the_papers_metrics(
    configure, tmp_path, name, macro, expected):
  (tmp_path / "dev_formatted.jsonl").write_text(
      '{"context": "a", "completion": "X-y z w"}\n'
      '{"context": "a", "completion": "b c d"}\n'
      '{"context": "b", "completion": "one two three four"}\n')
  gin = configure(f"tasks/{name}", NLG_FOLDER=str(tmp_path))
  task, examples = read_task(gin, "validation")
  outputs = ["x-y z w", "one two three four"]
  assert list(tasks.evaluate(task, examples, outputs, outputs)) == ["bleu"]
  with gin.unlock_config():
    gin.parse_config(f"METRICS = %{macro.upper()}")
  task, examples = read_task(gin, "validation")
  found = tasks.evaluate(task, examples, outputs, outputs)
  assert sorted(key if "meteor" not in key else "meteor"
                for key in found) == expected
  # Each output is a reference, but for its case.
  assert found.get("ter_webnlg", 0) == 0
  assert found[expected[0 if name == "nlg_e2e" else 1]] == pytest.approx(100)


def test_xsum_on_gpt2(clean_gin, tmp_path):
  """As the header of prefix_xsum.gin says: the sum over an example."""
  for side in ("source", "target"):
    (tmp_path / f"train.{side}").write_text("a text\n")
  command_line.configure([
      *(f"--gin_file={CONFIGS}/{name}.gin" for name in (
          "models/gpt2_medium", "prompts/prefix", "runs/prefix_xsum")),
      "--gin.LOSS_NORMALIZING_FACTOR=%BATCH_SIZE",
      "--gin.SEPARATOR='<|endoftext|>'", "--gin.PREFIX_HIDDEN_DIM=512",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 513, 'targets': 61}",
      "--gin.INITIAL_CHECKPOINT_PATH='base'", "--gin.MODEL_DIR='run'",
      f"--gin.SOURCE_TARGET_FOLDER={str(tmp_path)!r}"])
  found = command_line.macro("LOSS_NORMALIZING_FACTOR")
  assert found == command_line.macro("BATCH_SIZE") == 48


@pytest.mark.parametrize("name, lengths", [
    ("xsum", {"inputs": 1024, "targets": 60}),
    ("cnn_dailymail", {"inputs": 512, "targets": 56})])
def test_summaries(configure, tmp_path, name, lengths):
  """Both are tasks/`source_target` with lengths of their own."""
  for side, text in (("source", "A text.\n"), ("target", "Cats sat.\n")):
    (tmp_path / f"val.{side}").write_text(text)
  gin = configure(f"tasks/{name}", SOURCE_TARGET_FOLDER=str(tmp_path),
                  SEPARATOR="<|endoftext|>")
  assert gin.query_parameter("%TASK_FEATURE_LENGTHS") == lengths
  task, examples = read_task(gin, "validation")
  assert (task.name, task.input_end) == (name, "<|endoftext|>")
  assert examples == [{"inputs": "A text.", "targets": "Cats sat."}]
  found = tasks.evaluate(task, examples, ["Cats sat."], ["cat sat"])
  assert found["rougeL_stemmed"] == 100.0


def test_few_examples(configure, tmp_path):
  """prefix_low_data on tasks/`low_data`: section 7.4, the code's defaults."""
  (tmp_path / "train_formatted.jsonl").write_text("".join(
      f'{{"context": "a", "completion": "b {i}"}}\n' for i in range(120)))
  gin = configure(
      "models/gpt2_medium", "prompts/prefix", "prompts/prefix_from_words",
      "runs/prefix_low_data", MODEL_DIR="run", INITIAL_CHECKPOINT_PATH="base",
      NLG_FOLDER=str(tmp_path), LOW_DATA_EXAMPLES=100)
  for macro, value in (("TRAIN_STEPS", 400), ("EVAL_PERIOD", 50),
                       ("PREFIX_TEXT", " summarize"), ("BATCH_SIZE", 10)):
    assert gin.query_parameter(f"%{macro}") == value
  schedule = gin.get_configurable(schedules.linear_decay)()
  np.testing.assert_allclose(
      [schedule(step) for step in (0, 50, 100, 250, 400)],
      [0.0, 2.5e-5, 5e-5, 2.5e-5, 0.0], atol=1e-12)
  task, examples = read_task(gin, "train")
  assert (task.name, len(examples)) == ("nlg_e2e_100_0", 100)
  assert examples[0]["inputs"] == " a <|endoftext|>"


@pytest.mark.parametrize("name,expected", [
    ("mbpp", {"temperature": 0.6, "top_k": 50, "top_p": 0.95}),
    ("cruxeval", {"temperature": 0.2, "top_k": 50, "top_p": 0.95}),
    ("nlg", {"num_beams": 5, "alpha": 0.8, "rules": "hugging_face"}),
])
def test_lopas_searches(configure, name, expected):
  """The generation settings of LOPA's code."""
  gin = configure("models/gpt2", f"models/decoding/{name}",
                  INITIAL_CHECKPOINT_PATH="base")
  search = beam.beam_search if name == "nlg" else sampling.sample
  assert expected.items() <= gin.get_bindings(search).items()


SHARED_WITH_TEXT = ("frozen", "prompt", "LoRA", "full")
COMPARISONS = {
    "compare_smollm2_code": (
        ("frozen", "prompt", "IDPG", "LOPA", "LoRA", "full"), {
            "MBPP": "mbpp", "CRUXEval-I": "cruxeval_input_prediction",
            "CRUXEval-O": "cruxeval_output_prediction"}),
    "compare_smollm2_text": (
        ("frozen", "prompt", "IDPG", "LOPA", "LoRA", "full"),
        {"SST-2": "sst2", "E2E": "e2e"}),
    "compare_smollm2_e2e": (
        (*SHARED_WITH_TEXT, "prefix-5", "prefix-10", "adapter", "top-2"),
        {"E2E": "e2e"}),
    "compare_smollm2_prefix_lengths": (
        ("frozen", *(f"prefix-{n}" for n in (1, 5, 10, 20, 40))),
        {"E2E": "e2e"})}
COMPARISON_FILES = {
    "MBPP_FILE": "mbpp/mbpp_release_v1.jsonl",
    "CRUXEVAL_FILE": "cruxeval/cruxeval.jsonl",
    "SST2_TRAIN_FILE": "sst2/train.tsv", "SST2_DEV_FILE": "sst2/dev.tsv",
    "E2E_TRAIN_FILE": "e2e/train.txt.gz", "E2E_TEST_FILE": "e2e/test.txt.gz",
    "ENCODER_PATH": "encoder"}


@pytest.fixture
def compared(configure, shared_data):
  """The arguments of `compare` as a run file has them."""

  def read(run):
    head = (CONFIGS / f"runs/{run}.gin").read_text().split("# Expected")[0]
    if "what compare_smollm2_e2e.gin requires" in head:
      head += "E2E_TRAIN_FILE E2E_TEST_FILE"
    return configure(
        f"runs/{run}", INITIAL_CHECKPOINT_PATH="base", COMPARE_OUTPUT_DIR="out",
        **{name: str(shared_data / path)
           for name, path in COMPARISON_FILES.items() if name in head}
    ).get_bindings(compare_methods.compare)

  return read


@pytest.mark.parametrize("run", COMPARISONS)
def test_comparisons_on_smollm2(compared, run):
  """compare_smollm2: every cell's files go together and name the right task."""
  given = compared(run)
  methods, tasks_of_it = COMPARISONS[run]
  setting = cells.Setting("base", 1, 1, None, "cache")
  found = {
      (method, task): cells.look(cells.Cell(
          method, task, 0, given["methods"][method], given["tasks"][task],
          1, "out"), setting)
      for method in given["methods"] for task in given["tasks"]}
  assert found == {
      (method, task): (name, method != "frozen")
      for method in methods for task, name in tasks_of_it.items()}


@pytest.mark.parametrize("run,methods", [
    ("compare_smollm2_text", SHARED_WITH_TEXT),
    ("compare_smollm2_prefix_lengths", ("frozen", "prefix-5", "prefix-10"))])
def test_comparisons_on_e2e_share_cells(compared, run, methods):
  """What a cell is made with, `cells.run`, is the same in both."""
  found = [dict(compared(name)) for name in (run, "compare_smollm2_e2e")]
  for given in found:
    given["methods"] = {name: given["methods"][name] for name in methods}
    given["tasks"] = {"E2E": given["tasks"]["E2E"]}
    for name in ("seeds", "picture_axis"):
      del given[name]
  assert found[0] == found[1]


def test_prefix_lengths_are_on_the_pictures_axis(compared):
  given = compared("compare_smollm2_prefix_lengths")
  assert given["picture_axis"] == "PREFIX_LENGTH"
  for name, method in given["methods"].items():
    length = entries.bound(method, "PREFIX_LENGTH")
    assert name == ("frozen" if length is None else f"prefix-{length}")
