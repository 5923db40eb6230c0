"""Oracle: our own engine, on texts that begin as T5X's do."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from prompt_tuning import errors, prompts  # noqa: E402
from prompt_tuning.data import vocabularies  # noqa: E402
from prompt_tuning.decoding import beam, greedy  # noqa: E402
from prompt_tuning.methods import instance, lora, prefix  # noqa: E402
from prompt_tuning.models import causal_lm, decoder_only  # noqa: E402
from prompt_tuning.t5x import models  # noqa: E402
from prompt_tuning.train import prompts as train_prompts  # noqa: E402

SIZES = dict(vocab_size=384, embed_dim=8, num_layers=2, num_heads=2,
             head_dim=4, mlp_dim=16, max_positions=32)
BYTES = vocabularies.ByteVocabulary(extra_ids=125)
TEXTS = [([70, 71, 72], [80, 1]), ([73, 74, 75, 76, 77], [81, 82, 1])]
LENGTHS = {"inputs": 6, "targets": 4}
PROMPT = functools.partial(
    train_prompts.Prompt, prompts.Prompt(
        5, prompt_init=jax.nn.initializers.normal(1.0)))
AFTER_BOS = functools.partial(
    PROMPT, combine=train_prompts.prefix_prompt_after_bos)
PREFIX = functools.partial(prefix.Prefix, length=3)
LORA = lora.Lora(targets=[".*attention/(query|value)"], rank=2)


OWN = functools.partial(train_prompts.Prompt, instance.InstancePrompt(2))
CASES = {
    "prompt": ({}, dict(prompt_factory=PROMPT), None),
    "behind the first token": (
        dict(positions="learned"), dict(prompt_factory=AFTER_BOS), None),
    "one an example": (
        dict(sliding_window=4), dict(prompt_factory=OWN), None),
    "prefix": (dict(positions="alibi", embedding_norm=True),
               dict(prefix_factory=PREFIX), None),
    "scanned": (dict(scan_layers=True, num_kv_heads=1, tie_logits=False),
                dict(prompt_factory=PROMPT), None),
    "LoRA": ({}, {}, LORA)}


def engine(case, **options):
  sizes, factories, delta = CASES[case]
  return decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(causal_lm.Config(**SIZES, **sizes), **factories),
      BYTES, delta=delta, **options)


def their_batch(model):
  """What T5X gives its model: seqio's features of the texts."""
  examples = {"inputs": [a for a, _ in TEXTS], "targets": [b for _, b in TEXTS]}
  dataset = tf.data.Dataset.from_generator(
      lambda: ({"inputs": a, "targets": b} for a, b in TEXTS),
      output_signature={name: tf.TensorSpec([None], tf.int32)
                        for name in examples})
  converted = model.FEATURE_CONVERTER_CLS(pack=False)(dataset, LENGTHS)
  return next(iter(converted.batch(2).as_numpy_iterator()))


def our_batch(model):
  return model.features.padded(
      [[0, *a] for a, _ in TEXTS], [b for _, b in TEXTS],
      LENGTHS["inputs"] + 1, LENGTHS["targets"])


def both(case, **options):
  """Our model and T5X's around it, with random parameters for both."""
  ours = engine(case, **options)
  theirs = models.from_engine(ours)
  batch = their_batch(theirs)
  shapes = {name: value.shape for name, value in batch.items()}
  params = jax.eval_shape(functools.partial(
      theirs.get_initial_variables, input_shapes=shapes),
      jax.random.PRNGKey(0))["params"]
  draw = np.random.default_rng(0).standard_normal
  params = jax.tree.map(lambda x: 0.5 * draw(x.shape).astype("f"), params)
  return ours, theirs, params, batch


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_scores_are_the_engines(case):
  ours, theirs, params, batch = both(case, z_loss=1e-3, label_smoothing=0.1)
  loss, gradient = jax.jit(jax.value_and_grad(
      lambda p: theirs.loss_fn(p, batch, None)[0]))(params)

  def normalized(p):
    total, sums = ours.loss(p, our_batch(ours))
    return total / sums["tokens"]

  expected, own_gradient = jax.jit(jax.value_and_grad(normalized))(params)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5),
               dict(gradient), dict(own_gradient))
  np.testing.assert_allclose(
      jax.jit(theirs.score_batch)(params, batch),
      jax.jit(ours.score)(params, our_batch(ours)), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_greedy_decodes_are_the_engines(case):
  ours, theirs, params, batch = both(case, decode_fn=greedy.greedy)
  got, _ = jax.jit(theirs.predict_batch_with_aux)(params, batch)
  expected = jax.jit(ours.predict)(params, our_batch(ours))
  # T5X goes on to the end of the row.
  length = LENGTHS["targets"]
  assert np.array_equal(got[:, :length], expected)


@pytest.mark.parametrize("case", ["prompt", "scanned"])
def test_beams_are_sorted_by_recomputed_scores(case):
  """Oracle: the log-probabilities of the very tokens, by the engine."""
  ours, theirs, params, batch = both(case, decode_fn=functools.partial(
      beam.beam_search, num_beams=3, alpha=0.0))
  got, aux = jax.jit(functools.partial(
      theirs.predict_batch_with_aux, return_all_decodes=True))(params, batch)
  score = jax.jit(ours.score)
  assert got.shape[:2] == (2, 3)
  # Of the shortest inputs alone: T5X goes as many steps with every row, and
  # the scores of the others have tokens that no longer fit into theirs.
  inputs = min((a for a, _ in TEXTS), key=len)
  for tokens, expected in zip(got[0], aux["scores"][0]):
    text = [int(t) for t in tokens]
    end = text.index(1) + 1 if 1 in text else len(text) - len(inputs)
    batch_of_one = ours.features.padded(
        [[0, *inputs]], [text[:end]], LENGTHS["inputs"] + 1, len(text))
    np.testing.assert_allclose(
        expected, score(params, batch_of_one)[0], rtol=1e-4)


def test_what_is_not_causal_is_refused():
  _, theirs, params, batch = both("prompt")
  with pytest.raises(errors.UserError, match="pack = False"):
    theirs.score_batch(params, {
        **batch, "decoder_segment_ids": batch["decoder_input_tokens"]})
  with pytest.raises(errors.UserError, match="bidirectional"):
    theirs.module.apply(
        {"params": params}, batch["decoder_input_tokens"],
        batch["decoder_target_tokens"],
        decoder_causal_attention=batch["decoder_causal_attention"])


def test_too_long_a_text_is_refused():
  _, theirs, _, _ = both("prompt")
  with pytest.raises(errors.UserError, match="32 positions"):
    jax.eval_shape(lambda: theirs.get_initial_variables(
        jax.random.PRNGKey(0), {"decoder_input_tokens": (1, 30)}))


def test_texts_begin_as_the_tokenizers_do():
  class WithBos(vocabularies.ByteVocabulary):
    def encode_inputs(self, text):
      return [2, *self.encode(text)]

  model = engine("LoRA")
  theirs = models.from_engine(decoder_only.DecoderOnlyModel(
      model.module, WithBos(extra_ids=125)))
  assert list(their_batch(theirs)["decoder_input_tokens"][:, 0]) == [2, 2]
  assert isinstance(theirs.input_vocabulary, seqio.ByteVocabulary)
