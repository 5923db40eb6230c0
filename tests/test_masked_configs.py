"""Gin files of masked language models and of their tasks.

Oracles: the parameters of the published RoBERTas; the columns of GLUE's own
files, and the texts and words of LOPA's paper (arXiv 2405.15282) on them.
"""

import math
import warnings

import jax
import pytest

from prompt_tuning import command_line
from prompt_tuning.checkpoints import base_config, families
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.data import files, tasks
from prompt_tuning.methods import heads
from prompt_tuning.models import masked_lm
from prompt_tuning.train import state as state_lib

CONFIGS = command_line.PACKAGE / "configs"
PATH = "--gin.INITIAL_CHECKPOINT_PATH='base'"


@pytest.fixture
def configure(clean_gin):
  """Reads gin files of the package, by names without `.gin`, and flags."""

  def read(*arguments):
    clean_gin.clear_config()
    command_line.configure([
        a if a.startswith("--") else f"--gin_file={CONFIGS}/{a}.gin"
        for a in arguments])
    return clean_gin

  return read


def sizes(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# With the head and without the pooler, as RobertaForMaskedLM counts itself.
PUBLISHED = {"roberta_base": (124_697_433, 12, 12, 768),
             "roberta_large": (355_412_057, 24, 16, 1024)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(configure, name):
  """`masked_lm` and `masked_lm_prompt`, architectures/`roberta`, a size."""
  count, layers, heads, width = PUBLISHED[name]
  model = configure(
      f"models/{name}_prompt", PATH,
      "--gin.SCAN_LAYERS=True").get_configurable(masked_lm.MaskedLMModel)()
  shapes, axes = model.abstract()
  assert jax.tree.structure(shapes) == jax.tree.structure(
      axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  trained, frozen = state_lib.split(shapes, ["encoder/prompt/.*"])
  assert (sizes(trained), sizes(frozen)) == (10 * width, count)

  class Weights:
    path = "base"
    config = families.roberta.read_config(config_json.ConfigJson("", {
        "model_type": "roberta", "vocab_size": 50265, "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "type_vocab_size": 1,
        "max_position_embeddings": 514, "pad_token_id": 1,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu"}))

  base_config.check(Weights, model.module.config)


@pytest.mark.parametrize("method", ["lora", "lopa", "idpg"])
def test_methods(configure, method):
  model = configure(
      "models/roberta_base_prompt", f"prompts/{method}", PATH,
      "--gin.NUM_LAYERS=1").get_configurable(masked_lm.MaskedLMModel)()
  paths = set(state_lib.flatten(model.abstract()[0]))
  if method == "lora":
    assert any("attention/query/lora/" in path for path in paths)
    assert not any("prompt" in path for path in paths)
  else:
    place, _ = heads.prompt_of(model.module)
    assert any(path.startswith(f"{place}/") for path in paths)


# Header and rows of each file, and what the first row becomes.
MNLI = ("index promptID pairID genre sentence1_binary_parse "
        "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
        "sentence2 label1 gold_label").split()
FILES = {
    "mnli": ([MNLI, ["0", "1", "2", "travel", "", "", "", "", "It rains",
                     "It is wet.", "neutral", "neutral"]],
             "It rains ? <mask> , It is wet.", " Maybe"),
    "qnli": ([["index", "question", "sentence", "label"],
              ["0", "Who came?", "Ann came.", "entailment"]],
             "Who came? ? <mask> , Ann came.", " Yes"),
    "rte": ([["index", "sentence1", "sentence2", "label"],
             ["0", "Ann left.", "Ann came.", "not_entailment"]],
            "Ann left. ? <mask> , Ann came.", " No"),
    "mrpc": ([["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
              ["1", "7", "8", 'He said "yes', "He agreed"]],
             'He said "yes ? <mask> , He agreed', " Yes"),
    "qqp": ([["id", "qid1", "qid2", "question1", "question2",
              "is_duplicate"],
             ["5", "6", "7", "How?", "Why?", "0"],
             ["8", "9", "10", "broken off"]],
            "How? <mask> , Why?", " No"),
    "sst2": ([["sentence", "label"], ["a fine film ", "1"]],
             "a fine film  . It was <mask> .", " great"),
    "mpqa": ([["0", "a threat"]], "a threat . It was <mask> .", " terrible"),
    "mr": ([["1", "lovely"]], "lovely . It was <mask> .", " great"),
    "subj": ([["1", "she leaves"]], "she leaves . It was <mask> .",
             " objective"),
    "trec": ([["4", "Where is it ?"]], "<mask> : Where is it ?",
             " Location"),
}


@pytest.mark.parametrize("name", FILES)
def test_tasks_read_glues_files(configure, name, tmp_path):
  """mnli_masked, qnli_masked, rte_masked, mrpc_masked, qqp_masked,
  sst2_masked, mpqa_masked, mr_masked, subj_masked, trec_masked; masked."""
  rows, inputs, target = FILES[name]
  path = tmp_path / "dev.tsv"
  path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")
  gin = configure(
      f"tasks/{name}_masked", f"--gin.VALIDATION_FILE={str(path)!r}")
  task = gin.get_configurable(files.FileTask)()
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    (example,) = task.examples("validation")
  assert (example["inputs"], example["targets"]) == (inputs, target)
  assert target in task.label_texts and task.name == name
  assert len(told) == (name == "qqp")
  metrics = tasks.evaluate(task, [example], [target], [target], None)
  assert set(metrics) == {"accuracy"} | (
      {"f1"} if name in ("mrpc", "qqp") else set())
  assert metrics["accuracy"] == 100


def test_run(configure):
  """glue_roberta: 6 % of the steps up, then constant."""
  gin = configure(
      "models/roberta_large_prompt", "prompts/lora", "runs/glue_roberta",
      "tasks/rte_masked", PATH, "--gin.TRAIN_FILE='a.tsv'",
      "--gin.MODEL_DIR='run'", "--gin.TRAIN_STEPS=1000")
  from prompt_tuning.train import schedules

  rate = gin.get_configurable(schedules.warmed_up)()
  assert [float(rate(step)) for step in (0, 30, 60, 1000)] == pytest.approx(
      [0, 5e-5, 1e-4, 1e-4])
  assert gin.query_parameter("%TRAIN_EPOCHS") == 20
