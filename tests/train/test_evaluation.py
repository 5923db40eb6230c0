"""Scores of labels and perplexity, against one example at a time."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from prompt_tuning import errors, prompts
from prompt_tuning.data import features, tasks, vocabularies
from prompt_tuning.metrics import accuracy
from prompt_tuning.models import causal_lm, decoder_only, encoder_decoder, t5
from prompt_tuning.train import evaluation, settings, sharding
from prompt_tuning.train import prompts as train_prompts

BYTES = vocabularies.ByteVocabulary()
TEXTS = ["a film", "bad", "not so", "fun", "boring"]  # two lengths: compiled
LABELS = (" yes", " no", " hmm")  # for each
ROWS = [{"inputs": text, "targets": LABELS[i % 3]}
        for i, text in enumerate(TEXTS)]
TASK = tasks.Task(
    "mine", lambda split: iter(ROWS), ("dev",), (accuracy.accuracy,),
    label_texts=LABELS)
DATASET = settings.DatasetConfig(
    TASK, {"inputs": 12, "targets": 9}, split="dev", batch_size=4,
    bucket_lengths=[8])


def prompt():
  return train_prompts.Prompt(
      prompt=prompts.Prompt(length=3), combine=train_prompts.prefix_prompt)


def random_params(model):
  draw = np.random.default_rng(0)
  return jax.tree.map(
      lambda s: draw.normal(1.0 if len(s.shape) == 1 else 0.0, 0.4, s.shape)
      .astype(np.float32), model.abstract()[0])


@dataclasses.dataclass
class Made:
  """A model, and what it gives to every label, one example at a time.

  `alone` has the log-probabilities of the label's tokens and of the end.
  """

  model: object
  params: dict
  runner: evaluation.Runner
  alone: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def made(request):
  """One model of each kind."""
  if request.param == "decoder-only":
    module = causal_lm.CausalLM(
        causal_lm.Config(259, 8, 1, 2, 4, 16), prompt_factory=prompt)
    model = decoder_only.DecoderOnlyModel(module, BYTES)
  else:
    module = t5.EncoderDecoder(
        t5.Config(259, 8, 2, 4, 16, 1, 1), prompt_factory=prompt)
    model = encoder_decoder.EncoderDecoderModel(module, BYTES, BYTES)
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.MESH_AXES)
  params = random_params(model)
  logits = jax.jit(model.logits)

  def alone(text, label):
    inputs = model.features.input_ids(text, BYTES)
    ids = [*BYTES.encode(label), BYTES.eos_id]
    batch = model.features.padded([inputs], [ids], len(inputs), len(ids))
    found = np.asarray(logits(params, batch)[0], np.float64)
    found -= np.log(np.exp(found).sum(axis=-1, keepdims=True))
    return found[np.arange(len(ids)), ids]

  return Made(
      model, params, evaluation.Runner(model, mesh),
      {text: {label: alone(text, label) for label in LABELS}
       for text in TEXTS})


def examples(model):
  return features.tokenize(
      TASK, "dev", BYTES, BYTES, DATASET.task_feature_lengths,
      encoding=model.features)


def test_rank_is_every_label_after_every_example(made):
  found = made.runner.rank(
      {}, made.params, examples(made.model), DATASET,
      [BYTES.encode(text) for text in LABELS])
  expected = [[made.alone[text][label][:-1].sum() for label in LABELS]
              for text in TEXTS]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_labels_of_one_token_are_ranked_in_one_pass(made, monkeypatch):
  monkeypatch.delattr(made.runner, "_score")
  found = made.runner.rank(
      {}, made.params, examples(made.model), DATASET,
      [BYTES.encode(text)[:1] for text in LABELS])
  expected = [[made.alone[text][label][0] for label in LABELS]
              for text in TEXTS]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_likeliest_label_is_the_prediction(made):
  metrics, rows = evaluation.run_task(
      made.runner, TASK, examples(made.model), DATASET, made.model, {},
      made.params)
  for row, text in zip(rows, TEXTS, strict=True):
    scores = {label: made.alone[text][label][:-1].sum() for label in LABELS}
    assert row["scores"] == pytest.approx(scores, abs=1e-4)
    assert row["output"] == max(scores, key=scores.get)
  hits = [row["output"] == row["target"] for row in rows]
  assert metrics == {"accuracy": pytest.approx(100 * np.mean(hits))}


def test_perplexity_is_of_a_token_without_z_loss(made):
  found = made.runner.loss({}, made.params, examples(made.model), DATASET)
  tokens = np.concatenate(
      [made.alone[row["inputs"]][row["targets"]] for row in ROWS])
  assert found["perplexity"] == pytest.approx(
      math.exp(-tokens.mean()), rel=1e-5)


def labelled(*texts):
  return tasks.Task("mine", lambda split: iter(ROWS), ("dev",),
                    label_texts=texts)


def test_labels_end_only_if_one_begins_another():
  assert evaluation.label_ids(labelled("ab", "b"), BYTES, DATASET) == [
      [100, 101], [101]]
  assert evaluation.label_ids(labelled("ab", "a"), BYTES, DATASET) == [
      [100, 101, 1], [100, 1]]


@pytest.mark.parametrize("texts, message", [
    (("a", "a"), "must be different tokens"),
    (("a", ""), "at least one each"),
    (("a", "0123456789"), r"10 tokens, but TASK_FEATURE_LENGTHS.* is 9"),
])
def test_labels_that_cannot_be_ranked(texts, message):
  with pytest.raises(errors.UserError, match=message):
    evaluation.label_ids(labelled(*texts), BYTES, DATASET)
