"""What a models/ file says, said to T5X."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

import seqio  # noqa: E402
from t5x import decoding  # noqa: E402
from t5x import models as t5x_models  # noqa: E402

from prompt_tuning import errors  # noqa: E402
from prompt_tuning.data import vocabularies as our_vocabularies  # noqa: E402
from prompt_tuning.decoding import beam, greedy, sampling  # noqa: E402
from prompt_tuning.methods import lora  # noqa: E402
from prompt_tuning.models import encoder_decoder, t5  # noqa: E402
from prompt_tuning.t5x import models, vocabularies  # noqa: E402
from prompt_tuning.train import state as state_lib  # noqa: E402

CONFIG = t5.Config(
    vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    num_encoder_layers=1, num_decoder_layers=1)
BYTES = our_vocabularies.ByteVocabulary(extra_ids=125)
BATCH = {"encoder_input_tokens": np.array([[70, 71, 1, 0]], np.int32),
         "decoder_input_tokens": np.array([[0, 80, 81]], np.int32),
         "decoder_target_tokens": np.array([[80, 81, 1]], np.int32),
         "decoder_loss_weights": np.ones((1, 3), np.float32)}
SHAPES = {name: value.shape for name, value in BATCH.items()}


def engine(**options):
  return encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(CONFIG), BYTES, BYTES, **options)


@pytest.mark.parametrize("factor", [None, 2.0, "num_tokens"])
def test_loss_is_the_engines(factor):
  ours = engine(
      z_loss=1e-3, label_smoothing=0.1, loss_normalizing_factor=factor)
  theirs = models.from_engine(ours)
  params = theirs.get_initial_variables(
      jax.random.PRNGKey(0), SHAPES)["params"]
  loss, _ = theirs.loss_fn(params, BATCH, None)
  total, sums = ours.loss(params, BATCH)
  scale = {None: 1, "num_tokens": float(sums["tokens"])}.get(factor, factor)
  np.testing.assert_allclose(loss * scale, total, rtol=1e-5)


def test_scores_and_decodes_with_a_delta_are_the_engines():
  delta = lora.Lora(targets=[".*attention/(query|value)"], rank=2)
  ours = engine(delta=delta, decode_fn=functools.partial(
      beam.beam_search, num_beams=3))
  theirs = models.from_engine(ours)
  params = theirs.get_initial_variables(
      jax.random.PRNGKey(0), SHAPES)["params"]
  flat = state_lib.flatten(dict(params))
  adapters = [path for path in flat if "/lora/" in path]
  assert adapters
  draw = np.random.default_rng(0).standard_normal
  params = state_lib.unflatten({
      path: draw(value.shape).astype("f") if path in adapters else value
      for path, value in flat.items()})
  np.testing.assert_allclose(
      theirs.score_batch(params, BATCH), ours.score(params, BATCH), rtol=1e-5)
  got, aux = theirs.predict_batch_with_aux(
      params, BATCH, return_all_decodes=True)
  tokens, scores = ours.decodes(params, BATCH)
  np.testing.assert_allclose(aux["scores"][:, ::-1], scores, rtol=1e-5)
  assert np.array_equal(got[:, ::-1], tokens)


def test_every_decoding_has_one_of_t5xs():
  def options(decode_fn):
    model = models.from_engine(engine(decode_fn=decode_fn))
    return model.decode_fn.func, model.decode_fn.keywords

  assert options(greedy.greedy) == (
      decoding.temperature_sample, {"temperature": 0.0})
  assert options(functools.partial(
      sampling.sample, temperature=0.5, top_k=3, top_p=1.0)) == (
          decoding.temperature_sample,
          {"temperature": 0.5, "topk": 3, "topp": 0.0})
  with pytest.raises(errors.UserError, match="Hugging Face"):
    options(functools.partial(beam.beam_search, rules="hugging_face"))


def test_options_that_gin_binds_are_read(clean_gin):
  bound = clean_gin.external_configurable(beam.beam_search, module="of_a_test")
  clean_gin.parse_config("of_a_test.beam_search.num_beams = 5")
  model = models.from_engine(engine(decode_fn=bound))
  assert model._default_decoder_params.num_decodes == 5


def test_t5xs_own_model_is_left_alone():
  theirs = models.from_engine(engine())
  assert type(theirs) is t5x_models.EncoderDecoderModel
  assert models.from_engine(theirs) is theirs


def test_an_encoder_of_instances_is_refused():
  with pytest.raises(errors.UserError, match="ENCODER is set"):
    models.from_engine(engine(instance_encoder=object()))


def test_other_models_are_refused():
  with pytest.raises(errors.UserError, match="prompt_tuning.train"):
    models.from_engine("a decoder-only model")

  class OwnLoss(encoder_decoder.EncoderDecoderModel):
    pass

  with pytest.raises(errors.UserError, match="OwnLoss"):
    models.from_engine(OwnLoss(t5.EncoderDecoder(CONFIG), BYTES, BYTES))


def test_vocabularies_are_equal_by_their_pieces(shared_data, tmp_path):
  file = shared_data / "t5x" / "t5_vocab"
  copy = tmp_path / "spiece.model"
  copy.write_bytes(file.read_bytes())
  task = seqio.SentencePieceVocabulary(str(file), extra_ids=100)
  model = vocabularies.as_seqio(
      our_vocabularies.SentencePieceVocabulary(copy, extra_ids=100))
  assert task == model and model == task
  assert (task, task) == (model, model)  # as T5X compares them
  assert task != vocabularies.as_seqio(
      our_vocabularies.SentencePieceVocabulary(copy, extra_ids=0))
  assert model != seqio.ByteVocabulary()
  text = "a fine film"
  assert model.encode(text) == task.encode(text)


def test_bytes_are_bytes():
  assert vocabularies.as_seqio(BYTES) == seqio.ByteVocabulary(extra_ids=125)
  with pytest.raises(errors.UserError, match="vocabulary of seqio"):
    vocabularies.as_seqio("gpt2")
