"""Every method of the original's `extended/`, from training to evaluation.

Each trains a few steps, is stopped and resumed, and is evaluated by the command
from what the run has left. Oracles: the base's arrays, which must stay as they
are, and the evaluation at the end of training.
"""

import dataclasses
import json
import textwrap

import numpy as np
import pytest

from prompt_tuning.checkpoints import base, runs
from prompt_tuning.train import setup
from prompt_tuning.train import state as state_lib

CONFIGS = "prompt_tuning/configs"
T5_SIZES = """
from __gin__ import dynamic_registration
from prompt_tuning import pretrained
NUM_HEADS = 2
NUM_ENCODER_LAYERS = 2
NUM_DECODER_LAYERS = 1
HEAD_DIM = 4
EMBED_DIM = 8
MLP_DIM = 16
NUM_EMBEDDINGS = 4096
VOCABULARY_FILE = @pretrained.vocabulary_path()
"""
TASKS = """
import functools
from prompt_tuning.data import tasks, text_tasks
from prompt_tuning.metrics import accuracy

def rows(words):
  return [{"inputs": f"the array number {i} is {words[i % 3 > 0]}",
           "targets": words[i % 3 > 0]} for i in range(40)]

def one(index, words):
  found = rows(words)
  return tasks.Task(
      f"task_{index}", lambda split: iter(found), ("train", "validation"),
      metric_fns=(accuracy.accuracy,),
      token_fn=functools.partial(text_tasks.with_index, index=index))

tasks.register("two_tasks", lambda: tasks.Mixture("two_tasks", (
    (one(0, ("empty", "sorted")), 1.0), (one(1, ("array", "number")), 1.0))))
"""


@dataclasses.dataclass(frozen=True)
class Case:
  """One method.

  Attributes:
    models: its gin files, in order.
    trained: what is trained, by path.
    more: statements of gin.
    multitask: whether inputs begin with the token of their task.
    is_causal: whether the base is the tiny Llama, not the tiny T5.
  """

  models: tuple[str, ...]
  trained: tuple[str, ...]
  more: str = ""
  multitask: bool = False
  is_causal: bool = False


SHARED = ("encoder/prompt/prompt/shared_prompt",
          "encoder/prompt/prompt/task_prompts/embedding")
PROMPT = ("encoder/prompt/prompt/prompt",)


def multitask(kind, more=""):
  return Case(
      ("models/multi_task_t5_1_1_prompt",), SHARED, f"""
      MULTITASK_PROMPT = @multitask_prompts.{kind}MultiTaskPrompt()
      NUM_TASKS = 2
      multitask.sentinel_to_task.vocab_size = 4096
      {more}""", multitask=True)


def layers(side, count=2, embedded=False):
  found = tuple(
      f"{side}/layers_{i}/prompt/prompt/prompt" for i in range(count))
  return (*found, f"{side}/prompt/prompt/prompt") if embedded else found


ADD = """
      per_layer/train_prompts.Prompt.combine = @per_layer.add_prompt
      train_prompts.Prompt.prompt = @prompts.Prompt()"""
CAUSAL = ("models/causal_lm_from_checkpoint_prompt",)
CASES = {
    "multitask_add": multitask("Add"),
    "multitask_concat": multitask("Concat", "TASK_LENGTH = 2"),
    "multitask_concat_features": multitask(
        "ConcatFeatures", "SHARED_FEATURES = 5"),
    "multitask_project": multitask("Project", "SHARED_FEATURES = 4"),
    "per_layer_replace": Case(
        ("models/t5_1_1_per_layer_prompt",), layers("encoder")),
    "per_layer_add": Case(
        ("models/t5_1_1_per_layer_prompt",),
        layers("encoder", embedded=True), ADD),
    "decoder_per_layer_replace": Case(
        (*CAUSAL, "prompts/per_layer"), layers("decoder"), is_causal=True),
    "decoder_per_layer_add": Case(
        (*CAUSAL, "prompts/per_layer"), layers("decoder", embedded=True), ADD,
        is_causal=True),
    "ia3": Case(("models/ia3_t5_1_1",), ()),
    "wayward": Case(
        ("models/wayward_t5_1_1_prompt",), PROMPT,
        "TASK_STRING = 'is it sorted or not'"),
    "attention": Case(
        ("models/t5_1_1_prompt", "prompts/attention"), PROMPT,
        "ALLOWABLE_ATTENTION = ['prompt->prompt;causal']"),
    "perceptron": Case(
        ("models/perceptron_t5_1_1_prompt",), PROMPT, "HINGE = 1.0"),
    "cross_entropy": Case(("models/cross_entropy_t5_1_1_prompt",), PROMPT),
    "valid_labels": Case(("models/valid_labels_t5_1_1_prompt",), PROMPT),
    "perceptron_decoder": Case(
        (*CAUSAL, "models/perceptron_causal_lm"),
        ("decoder/prompt/prompt/prompt",), "HINGE = 1.0", is_causal=True),
}
# About 10 s each on an idle core.
FAST = {"multitask_add", "decoder_per_layer_replace", "perceptron"}


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory, save_random_lm):
  """A Hugging Face directory with random weights and a tokenizer."""
  import tokenizers

  from prompt_tuning.models import causal_lm

  config = causal_lm.Config(
      vocab_size=64, embed_dim=8, num_layers=2, num_heads=2, head_dim=4,
      mlp_dim=16, max_positions=64, tie_logits=False)
  folder = tmp_path_factory.mktemp("tiny_llama")
  save_random_lm(folder, config)
  words = ["<unk>", "</s>", "the", "array", "number", "is", "sorted", "empty",
           *map(str, range(40))]
  words += [f"<{i}>" for i in range(64 - len(words))]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, "<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
      json.dumps({"eos_token": "</s>"}))
  return folder


@pytest.fixture
def watched(monkeypatch):
  """What `setup.prepare` gave: trainable values at the start, frozen arrays."""
  prepared, prepare = [], setup.prepare

  def preparing(*arguments, **options):
    weights = prepare(*arguments, **options)
    started = {path: np.array(value) for path, value in state_lib.flatten(
        weights.trainable).items()}
    prepared.append((started, state_lib.flatten(weights.frozen)))
    return weights

  monkeypatch.setattr(setup, "prepare", preparing)
  return prepared


@pytest.fixture
def flags_of(tiny_flags, tiny_base, tiny_llama, tmp_path, monkeypatch):
  """A function: case and run -> flags of the command."""
  (tmp_path / "tasks_of_test.py").write_text(TASKS)
  monkeypatch.syspath_prepend(str(tmp_path))

  def flags(case, run, **macros):
    file = tmp_path / "model.gin"
    includes = "".join(f"include '{CONFIGS}/{name}.gin'\n"
                       for name in case.models)
    length = "" if "wayward" in case.models[0] else "PROMPT_LENGTH = 3\n"
    file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from prompt_tuning import prompts\n"
        "from prompt_tuning.methods import multitask\n"
        "from prompt_tuning.methods import multitask_prompts\n"
        "from prompt_tuning.methods import per_layer\n"
        "from prompt_tuning.train import prompts as train_prompts\n"
        + includes + ("" if case.is_causal else T5_SIZES.split("tion\n", 1)[1])
        + ("" if "ia3" in case.models[0] else length)
        + textwrap.dedent(case.more))
    macros = {"RANK_LABELS": True, "BATCH_SIZE": 8} | macros
    if case.is_causal:
      macros |= {"INITIAL_CHECKPOINT_PATH": str(tiny_llama),
                 "CHECKPOINT_PATH": str(tiny_llama)}
    if case.multitask:
      macros |= {"MIXTURE_OR_TASK_NAME": "two_tasks",
                 "MIXTURE_OR_TASK_MODULE": "tasks_of_test"}
    found = tiny_flags("prompt_finetune" if run == "train" else "prompt_eval",
                       **macros)
    found[0] = f"--gin_file={file}"
    if run == "eval" and (case.is_causal or "wayward" in case.models[0]):
      path = str(tiny_llama if case.is_causal else tiny_base)
      found.append(f"--gin.INITIAL_CHECKPOINT_PATH={path!r}")
    return [flag.replace("prompt_eval.gin", "trained_eval.gin")
            for flag in found]

  return flags


@pytest.mark.parametrize("name", [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES])
def test_trains_resumes_and_evaluates(
    command, flags_of, watched, tiny_base, tiny_llama, tmp_path, name):
  case, run = CASES[name], tmp_path / "run"
  steps = {"EVAL_PERIOD": 30, "SAVE_PERIOD": 30, "LOG_PERIOD": 5}
  # Few steps of a tiny model: rates that show.
  steps["LEARNING_RATE"] = 0.1 if case.is_causal or name == "ia3" else 0.3
  for total in (5, 20):
    trained = command("train", *flags_of(
        case, "train", MODEL_DIR=str(run), TRAIN_STEPS=total, **steps))
    assert trained.status == 0, trained.err
  assert "starting at step 5" in trained.err
  losses = [json.loads(line)["loss"] for line in
            (run / "train.jsonl").read_text().splitlines()]
  assert losses[-1] < losses[0]

  weights = str(tiny_llama if case.is_causal else tiny_base)
  started, frozen = watched[0]
  assert set(started) == set(case.trained) or (
      name == "ia3" and all(p.endswith("ia3_scaling") for p in started))
  found, _ = runs.trained(run)
  assert set(found) == set(started)
  for path, value in found.items():  # every parameter, of all tasks and layers
    rows = value != started[path]
    assert rows.any(axis=-1).all() if rows.ndim > 1 else rows.any(), path
  assert set(frozen) == set(base.open_base(weights).arrays)
  for path, value in frozen.items():  # after the run
    np.testing.assert_array_equal(
        np.asarray(value), base.read_variable(weights, path), err_msg=path)

  evaluated = command("eval", *flags_of(
      case, "eval", RUN_DIR=str(run), EVAL_OUTPUT_DIR=str(tmp_path / "eval")))
  assert evaluated.status == 0, evaluated.err
  assert evaluated.result and evaluated.result.items() <= trained.result.items()


def test_a_run_of_another_method_is_named(command, flags_of, tmp_path):
  run = tmp_path / "run"
  trained = command("train", *flags_of(
      CASES["perceptron"], "train", MODEL_DIR=str(run), TRAIN_STEPS=1))
  assert trained.status == 0, trained.err
  output = str(tmp_path / "eval")
  other = command("eval", *flags_of(
      CASES["per_layer_replace"], "eval", RUN_DIR=str(run),
      EVAL_OUTPUT_DIR=output))
  assert other.status == 2
  assert "trained encoder/prompt/prompt/prompt, but" in other.err
  absent = command("eval", *flags_of(
      CASES["perceptron"], "eval", RUN_DIR=str(tmp_path / "no"),
      EVAL_OUTPUT_DIR=output))
  assert absent.status == 2 and "no checkpoint_N of a run" in absent.err


def test_a_run_predicts(command, flags_of, tmp_path):
  """`trained_infer`; the scores of labels rank as the predictions do."""
  run, case = tmp_path / "run", CASES["perceptron"]
  trained = command("train", *flags_of(
      case, "train", MODEL_DIR=str(run), TRAIN_STEPS=1))
  assert trained.status == 0, trained.err
  flags = [flag.replace("trained_eval", "trained_infer") for flag in flags_of(
      case, "eval", RUN_DIR=str(run / "checkpoint_1"),
      INFER_OUTPUT_DIR=str(tmp_path / "out"))]
  inferred = command("infer", *flags)
  assert inferred.status == 0, inferred.err
  rows = [json.loads(line) for line in
          (tmp_path / "out" / "file-predict.jsonl").read_text().splitlines()]
  assert len(rows) == 12
  for row in rows:
    assert row["prediction"] == max(row["scores"], key=row["scores"].get)
