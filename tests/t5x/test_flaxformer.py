"""Oracles: our own module, whose names, axes and logits Flaxformer's has; for
the decoder-only model Flaxformer's own without a prompt, on tokens whose
embeddings are the prompt."""

import functools

import jax
import numpy as np
import pytest

WHY = "T5X and Flaxformer are not installed: see docs/t5x.md"
pytest.importorskip("t5x", reason=WHY)
pytest.importorskip("flaxformer", reason=WHY)

from prompt_tuning import errors, prompts  # noqa: E402
from prompt_tuning.data import vocabularies  # noqa: E402
from prompt_tuning.decoding import greedy  # noqa: E402
from prompt_tuning.models import decoder_only, t5  # noqa: E402
from prompt_tuning.t5x import flaxformer, models  # noqa: E402
from prompt_tuning.train import prompts as train_prompts  # noqa: E402
from prompt_tuning.train import state as state_lib  # noqa: E402

SIZES = dict(
    vocab_size=128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=4,
    relpos_max_distance=8)
BATCH = (np.array([[3, 4, 5, 1, 0, 0], [7, 8, 9, 10, 11, 1]], np.int32),
         np.array([[0, 5, 6], [0, 9, 1]], np.int32),
         np.array([[5, 6, 1], [9, 1, 0]], np.int32))
PROMPT = functools.partial(
    train_prompts.Prompt, prompt=prompts.Prompt(length=5))
SUFFIX = functools.partial(PROMPT, combine=train_prompts.suffix_prompt)


@pytest.mark.parametrize("prompt", [PROMPT, SUFFIX, None])
@pytest.mark.parametrize("options", [
    {}, dict(tie_logits=True, mlp_activations=("relu",), remat="full")])
def test_parameters_axes_and_logits_are_ours(prompt, options):
  config = t5.Config(**SIZES, **options)
  ours = t5.EncoderDecoder(config, prompt)
  theirs = flaxformer.encoder_decoder(config, prompt)
  both = [module.init(jax.random.PRNGKey(0), *BATCH, enable_dropout=False)
          for module in (ours, theirs)]
  shapes = [{path: value.shape for path, value in
             state_lib.flatten(one["params"]).items()} for one in both]
  assert shapes[0] == shapes[1]
  axes = [{path: tuple(value.names) for path, value in
           state_lib.flatten(one["params_axes"]).items()} for one in both]
  assert axes[0] == axes[1]
  logits = [
      module.apply({"params": both[1]["params"]}, *BATCH, enable_dropout=False)
      for module in (ours, theirs)]
  counts = BATCH[2] > 0  # Flaxformer's are 0 where targets are padding
  np.testing.assert_allclose(
      logits[0][counts], logits[1][counts], rtol=0, atol=1e-6)


def test_scanned_layers_are_refused():
  with pytest.raises(errors.UserError, match="SCAN_LAYERS"):
    flaxformer.encoder_decoder(t5.Config(**SIZES, scan_layers=True))


def test_packing_is_refused():
  module = flaxformer.encoder_decoder(t5.Config(**SIZES), PROMPT)
  with pytest.raises(errors.UserError, match="pack = False"):
    module.init(
        jax.random.PRNGKey(0), *BATCH, encoder_segment_ids=BATCH[0],
        decoder_segment_ids=BATCH[1], enable_dropout=False)


# A text as T5X has it: 0, four inputs (of the second row three), targets.
TEXT = np.array([[0, 3, 4, 5, 6, 9, 8], [0, 7, 8, 9, 10, 11, 0]], np.int32)
TARGETS = np.array([[3, 4, 5, 6, 9, 8, 1], [7, 8, 9, 10, 11, 1, 0]], np.int32)
ARE_INPUTS = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]], np.int32)
AS_TOKENS = np.array([21, 22, 23, 24, 25], np.int32)


@pytest.fixture(scope="module")
def decoders():
  """With a prompt and plain, and parameters: the prompt is of AS_TOKENS."""
  config = t5.Config(**SIZES)
  prompted = flaxformer.decoder_only(config, PROMPT, len(AS_TOKENS))
  plain = flaxformer.decoder_only(config)
  params = jax.jit(functools.partial(plain.init, enable_dropout=False))(
      jax.random.PRNGKey(0), TEXT, TARGETS)["params"]
  prompt = params["decoder"]["token_embedder"]["embedding"][AS_TOKENS]
  with_prompt = {"decoder": {
      **params["decoder"], "prompt": {"prompt": {"prompt": prompt}}}}
  shapes = jax.eval_shape(
      functools.partial(prompted.init, enable_dropout=False),
      jax.random.PRNGKey(0), TEXT, TARGETS)["params"]
  assert jax.tree.structure(shapes) == jax.tree.structure(with_prompt)
  return prompted, with_prompt, plain, params


def behind_tokens(rows, tokens=AS_TOKENS):
  return np.concatenate(
      [np.broadcast_to(tokens, (len(rows), len(tokens))), rows], axis=1)


@pytest.mark.parametrize("inputs_see_each_other", [False, True])
def test_decoder_only_logits(decoders, inputs_see_each_other):
  prompted, with_prompt, plain, params = decoders

  def logits(module, params, text, targets, inputs):
    return jax.jit(functools.partial(module.apply, enable_dropout=False))(
        {"params": params}, text, targets, decoder_causal_attention=(
            inputs if inputs_see_each_other else None))

  text = TEXT.copy()
  text[:, 0] = 2  # a 0 counts as text only where it is the very first token
  got = logits(prompted, with_prompt, text, TARGETS, ARE_INPUTS)
  ones = np.ones_like(AS_TOKENS)
  expected = logits(
      plain, params, behind_tokens(text), behind_tokens(TARGETS, ones),
      behind_tokens(ARE_INPUTS, ones))[:, len(AS_TOKENS):]
  counts = TARGETS > 0
  np.testing.assert_allclose(
      np.asarray(got)[counts], np.asarray(expected)[counts], rtol=0, atol=1e-5)


def test_decoder_only_decodes_what_its_logits_say(decoders):
  """Oracle: greedy search that runs the whole text again at every token."""
  prompted, params, _, _ = decoders
  model = models.from_engine(decoder_only.DecoderOnlyModel(
      prompted, vocabularies.ByteVocabulary(extra_ids=0),
      decode_fn=greedy.greedy))
  batch = {"decoder_input_tokens": TEXT, "decoder_target_tokens": TARGETS,
           "decoder_causal_attention": ARE_INPUTS}
  got, _ = jax.jit(model.predict_batch_with_aux)(params, batch)
  logits = jax.jit(functools.partial(prompted.apply, enable_dropout=False))
  for row, inputs in enumerate(ARE_INPUTS.sum(axis=1)):
    text = TEXT[row:row + 1] * ARE_INPUTS[row:row + 1]
    for place in range(inputs, TEXT.shape[1]):
      seen = (np.arange(TEXT.shape[1]) < place)[None].astype(np.int32)
      text[0, place] = np.argmax(logits(
          {"params": params}, text, seen)[0, place - 1])
      assert got[row, place - inputs] == text[0, place]
      if text[0, place] == 1:
        break
