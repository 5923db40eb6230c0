"""N prompts in one pass. Oracle: N passes with one prompt each."""

import functools
import json

import jax
import numpy as np
import pytest

from prompt_tuning import command_line, errors, prompts
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.data import features, tasks, vocabularies
from prompt_tuning.formats import card, npy, t5x
from prompt_tuning.metrics import accuracy
from prompt_tuning.models import causal_lm, decoder_only, encoder_decoder
from prompt_tuning.models import t5 as t5_lib
from prompt_tuning.train import evaluation, settings, sharding
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.transfer import ensemble

BYTES = vocabularies.ByteVocabulary()
TEXTS = ["a film", "bad", "not so", "fun", "boring"]
LABELS = (" yes", " no", " hmm")
ROWS = [{"inputs": text, "targets": LABELS[i % 3]}
        for i, text in enumerate(TEXTS)]
TASK = tasks.Task(
    "mine", lambda split: iter(ROWS), ("dev",), (accuracy.accuracy,))
RANKED = tasks.Task(
    "ranked", lambda split: iter(ROWS), ("dev",), (accuracy.accuracy,),
    label_texts=LABELS)
DATASET = settings.DatasetConfig(
    TASK, {"inputs": 8, "targets": 4}, split="dev", batch_size=4)
PROMPTS = np.random.default_rng(5).normal(size=(3, 2, 8)).astype(np.float32)


@pytest.mark.parametrize("predictions, winner", [
    ("abb", "b"), ("abba", "a"), ("baab", "b"), ("cab", "c"), ("a", "a")])
def test_the_first_of_the_most_frequent_wins(predictions, winner):
  assert ensemble.vote(predictions) == winner


def model_with(factory, kind):
  if kind == "decoder-only":
    module = causal_lm.CausalLM(
        causal_lm.Config(259, 8, 1, 2, 4, 16), prompt_factory=factory)
    return decoder_only.DecoderOnlyModel(module, BYTES)
  module = t5_lib.EncoderDecoder(
      t5_lib.Config(259, 8, 2, 4, 16, 1, 1), prompt_factory=factory)
  return encoder_decoder.EncoderDecoderModel(module, BYTES, BYTES)


def door(prompt, combine=train_prompts.prefix_prompt):
  return functools.partial(
      train_prompts.Prompt, prompt=prompt, combine=combine)


def params_of(model, prompt):
  """One base's random weights, whatever the prompt."""
  draw = np.random.default_rng(0)
  flat = sorted(jax.tree_util.tree_flatten_with_path(model.abstract()[0])[0],
                key=lambda item: jax.tree_util.keystr(item[0]))
  values = {
      path: prompt if "prompt" in jax.tree_util.keystr(path) else draw.normal(
          1.0 if len(leaf.shape) == 1 else 0.0, 0.6, leaf.shape
      ).astype(np.float32)
      for path, leaf in flat}
  return jax.tree_util.tree_map_with_path(
      lambda path, _: values[path], model.abstract()[0])


@pytest.fixture(scope="module")
def mesh():
  return jax.sharding.Mesh(
      np.array(jax.devices()[:2]).reshape(2, 1, 1), sharding.MESH_AXES)


@pytest.mark.parametrize("kind, task", [
    ("decoder-only", TASK), ("encoder-decoder", RANKED)])
def test_one_pass_is_as_many_passes(kind, task, mesh, tmp_path):
  """Also over two devices, with a last batch that is padded."""
  paths = [str(tmp_path / f"{i}.npy") for i in range(3)]
  for path, prompt in zip(paths, PROMPTS):
    npy.write(path, prompt)
  many = model_with(door(ensemble.prompt_of_files(paths)), kind)
  one = model_with(door(prompts.Prompt(2)), kind)
  examples = features.tokenize(
      task, "dev", BYTES, BYTES, DATASET.task_feature_lengths,
      encoding=one.features)
  runner = evaluation.Runner(ensemble.Repeated(many, 3), mesh)
  alone = evaluation.Runner(one, mesh)
  outcome = ensemble.run_task(
      runner, 3, task, examples, DATASET, many, {}, params_of(many, PROMPTS))
  for prompt, (found, found_rows) in zip(PROMPTS, outcome.members):
    metrics, rows = evaluation.run_task(
        alone, task, examples, DATASET, one, {}, params_of(one, prompt))
    assert found == metrics
    assert [r["output"] for r in found_rows] == [r["output"] for r in rows]
    for mine, theirs in zip(found_rows, rows):
      assert mine.get("scores") == (
          pytest.approx(theirs["scores"], abs=1e-4)
          if task is RANKED else None)
  ranked = [[row.get("scores") for row in rows] for _, rows in outcome.members]
  votes = {tuple(row["votes"]) for row in outcome.ensemble[1]}
  assert len(votes) > 1 or ranked[0] != ranked[1]  # the prompts matter


def test_the_vote_is_what_is_judged(mesh):
  """Metrics and rows of known predictions."""

  class Known:
    def rank(self, *_):
      best = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 2, 1], [2, 1, 2]])
      return np.eye(3)[best].transpose(0, 2, 1)  # [E, labels, N]

  examples = features.tokenize(
      RANKED, "dev", BYTES, BYTES, DATASET.task_feature_lengths)
  model = model_with(door(prompts.Prompt(2)), "encoder-decoder")
  outcome = ensemble.run_task(
      Known(), 3, RANKED, examples, DATASET, model, {}, {})
  metrics, rows = outcome.ensemble
  assert [row["output"] for row in rows] == [
      " yes", " no", " no", " yes", " hmm"]  # the fourth: all differ
  assert rows[2]["votes"] == [" yes", " no", " no"]
  # Targets: yes, no, hmm, yes, no.
  assert metrics == {"accuracy": pytest.approx(60)}
  assert [m["accuracy"] for m, _ in outcome.members] == [
      pytest.approx(x) for x in (60, 60, 20)]
  [record] = ensemble.summary("ranked", outcome)
  assert record == {
      "task": "ranked", "metric": "accuracy",
      "average": pytest.approx(140 / 3), "best": 60, "ensemble": 60}


def test_overall_is_the_mean_of_tasks():
  """Lester et al. 2021, table 3: SuperGLUE of its eight rows."""
  table = {
      "BoolQ": [(91.1, 91.3, 91.7)], "CB": [(99.3,) + (100,) * 2,
                                            (99.0, 100, 100)],
      "COPA": [(98.8, 100, 100)],
      "MultiRC": [(65.7, 66.3, 67.1), (88.7, 89.0, 89.4)],
      "ReCoRD": [(92.7, 92.9, 93.2), (93.4, 93.5, 93.9)],
      "RTE": [(92.6, 93.5, 93.5)], "WiC": [(76.2, 76.6, 77.4)],
      "WSC": [(95.8, 96.2, 96.2)]}
  names = ("average", "best", "ensemble")
  [record] = ensemble.overall([
      {"task": task} | dict(zip(names, row))
      for task, rows in table.items() for row in rows])
  assert [record[name] for name in names] == [
      pytest.approx(x, abs=0.06) for x in (90.5, 91.0, 91.3)]
  assert ensemble.overall([{"task": "CB"}]) == []


@pytest.fixture
def files(tmp_path):
  """Three prompts for the tiny model, in folders of their own."""
  draw = np.random.default_rng(1)
  paths = [tmp_path / f"seed_{i}" / "prompt.npy" for i in range(3)]
  for path in paths:
    path.parent.mkdir()
    npy.write(path, draw.normal(size=(5, 8)))
  return [str(path) for path in paths]


def evaluate(tiny_flags, **macros):
  flags = tiny_flags("prompt_eval", **macros)
  flags = [f.replace("runs/prompt_eval", "runs/prompt_ensemble_eval")
           for f in flags]
  return command_line.main(ensemble.evaluate, flags)


@pytest.fixture
def step_7(tiny_base, tmp_path):
  """The tiny base as a T5X checkpoint of step 7."""
  weights = base_lib.open_base(tiny_base)
  t5x.write_all(tmp_path / "checkpoint_7", [
      (name, base_lib.read_variable(tiny_base, name))
      for name in weights.arrays], 7)
  return str(tmp_path / "checkpoint_7")


def test_the_command(
    tiny_flags, step_7, files, tmp_path, command, clean_gin, capsys):
  """Each prompt's results are those of its own `prompt_tuning.eval`."""
  task = {"CHECKPOINT_PATH": step_7}
  out = tmp_path / "out"
  for folder in (out / "prompts" / "seed_1_prompt", tmp_path / "alone"):
    (folder / "inference_eval").mkdir(parents=True)
    (folder / "inference_eval" / "other-metrics.jsonl").write_text(
        '{"step": 7, "accuracy": 1.0}\n')  # another task's, which must stay
  records = evaluate(
      tiny_flags, PROMPT_FILES=files, EVAL_OUTPUT_DIR=str(out), **task)
  alone = tmp_path / "alone"
  outcome = command("eval", *tiny_flags(
      "prompt_eval", PROMPT_FILE=files[1], EVAL_OUTPUT_DIR=str(alone), **task))
  assert outcome.status == 0, outcome.err
  member = out / "prompts" / "seed_1_prompt"
  logs = list((alone / "inference_eval").iterdir())
  assert len(logs) == 3
  for path in logs:
    assert path.read_text()
    assert (member / "inference_eval" / path.name).read_text() == (
        path.read_text())
  [predictions] = (out / "ensemble" / "inference_eval").glob("*-0*.jsonl")
  rows = [json.loads(line) for line in predictions.read_text().splitlines()]
  assert len(rows) == 12
  assert all(row["output"] == ensemble.vote(row["votes"]) for row in rows)
  assert [r["metric"] for r in records] == ["accuracy"]
  said = capsys.readouterr().err
  table = (out / "ensemble.md").read_text()
  assert table in said
  assert table.split("\n")[0].split() == [
      "|", "task", "|", "metric", "|", "average", "|", "best", "|",
      "ensemble", "|"]


def test_bad_prompts(tiny_flags, files, tmp_path, clean_gin, capsys):
  out = str(tmp_path / "out")
  for other, words in (
      ((4, 8), "name prompts of one length and width"),
      ((5, 7), "name prompts of one length and width")):
    path = str(tmp_path / "other.npy")
    npy.write(path, np.ones(other))
    clean_gin.clear_config()
    with pytest.raises(SystemExit):
      evaluate(tiny_flags, PROMPT_FILES=[*files, path],
               EVAL_OUTPUT_DIR=out)
    assert words in capsys.readouterr().err
  card.write_card(
      files[2], base_model="another", base_fingerprint="0" * 64, task="",
      metric={}, step=0, settings={})
  clean_gin.clear_config()
  with pytest.raises(SystemExit):
    evaluate(tiny_flags, PROMPT_FILES=files, EVAL_OUTPUT_DIR=out)
  assert "was trained on the base model 'another'" in capsys.readouterr().err
  for paths in ([], "prompt.npy"):
    with pytest.raises(errors.UserError, match="name the prompts in a list"):
      ensemble.prompt_of_files(paths)
