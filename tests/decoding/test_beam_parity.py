"""Beam search with Hugging Face's rules is `transformers.generate`.

Oracle: transformers on random GPT-2, BART and T5 of 14 tokens, whose logits
both searches get, with each option by itself and all of them together. Whole
models of ours are in tests/models.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import beam

pytestmark = pytest.mark.parity

VOCAB, PAD, EOS = 14, 1, 2
ROWS, PROMPT, LENGTH = 6, 4, 9
KINDS = ("gpt2", "bart", "t5")

# In transformers' words.
OPTIONS = {
    "plain": {},
    "long": {"length_penalty": 2.0},
    "no_penalty": {"length_penalty": 0.0},
    "first_k": {"early_stopping": True},
    "never": {"early_stopping": "never"},
    "never_long": {"early_stopping": "never", "length_penalty": 2.0},
    "never_short": {"early_stopping": "never", "length_penalty": -1.0},
    "two_beams": {"num_beams": 2, "length_penalty": 0.5},
    "min": {"min_new_tokens": 5},
    "no_words_again": {"no_repeat_ngram_size": 1},
    "no_pairs_again": {"no_repeat_ngram_size": 2},
    "no_triples_again": {"no_repeat_ngram_size": 3},
    "bad_words": {"bad_words_ids": [[5], [7], [3, 4], [6, 8, 9], [EOS]]},
    "forced_end": {"forced_eos_token_id": EOS, "early_stopping": "never"},
    "forced": {"forced_bos_token_id": 0, "forced_eos_token_id": EOS},
    "all": {"num_beams": 5, "min_new_tokens": 3, "length_penalty": 0.8,
            "no_repeat_ngram_size": 3, "early_stopping": True,
            "forced_eos_token_id": EOS, "bad_words_ids": [[5], [3, 4]]},
}
OURS = {"length_penalty": "alpha", "bad_words_ids": "bad_words",
        "forced_bos_token_id": "forced_bos_id",
        "forced_eos_token_id": "forced_eos_id"}


class Model:
  """A random torch model; its prompts are read before what is decoded."""

  def __init__(self, kind, seed):
    import torch
    import transformers

    torch.manual_seed(seed)
    ids = {"bos_token_id": 0, "pad_token_id": PAD, "eos_token_id": EOS}
    if kind == "gpt2":
      self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
          vocab_size=VOCAB, n_embd=16, n_head=2, n_layer=1, n_positions=16,
          initializer_range=0.4, **ids))
    elif kind == "bart":
      self.model = transformers.BartForConditionalGeneration(
          transformers.BartConfig(
              vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1,
              encoder_attention_heads=2, decoder_attention_heads=2,
              encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=0.5,
              max_position_embeddings=16, forced_eos_token_id=None, **ids))
    else:
      self.model = transformers.T5ForConditionalGeneration(
          transformers.T5Config(
              vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1,
              num_heads=2, decoder_start_token_id=0, initializer_factor=2.0,
              **ids))
    self.model.eval()
    self.prompts = torch.randint(3, VOCAB, (ROWS, PROMPT))
    self.causal = kind == "gpt2"
    if self.causal:
      self.context = self.prompts.numpy()
    else:
      start = self.model.config.decoder_start_token_id
      self.context = np.full((ROWS, 1), start)
      with torch.no_grad():
        self.encoded = self.model.get_encoder()(self.prompts).last_hidden_state

  def generate(self, options):
    """Best hypotheses [ROWS, LENGTH], 0 after their end, and scores."""
    import torch

    with torch.no_grad():
      out = self.model.generate(
          self.prompts, attention_mask=torch.ones_like(self.prompts),
          max_new_tokens=LENGTH, do_sample=False, output_scores=True,
          return_dict_in_generate=True, **{"num_beams": 4} | options)
    tokens = out.sequences[:, self.context.shape[1]:].numpy()
    ended = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
    tokens = np.where(ended, 0, tokens)
    return (np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1]))),
            out.sequences_scores.numpy())

  def logits(self, rows, history, position):
    """Of the next token after each row's context and history: [N, V]."""
    import torch

    rows = np.asarray(rows)
    written = np.asarray(history, np.int64)[:, 1:int(position) + 1]
    text = torch.from_numpy(
        np.concatenate([self.context[rows], written], axis=1))
    with torch.no_grad():
      if self.causal:
        found = self.model(text, use_cache=False)
      else:
        found = self.model(
            encoder_outputs=(self.encoded[rows],), decoder_input_ids=text,
            use_cache=False)
    return found.logits[:, -1].numpy()


@pytest.fixture(scope="module")
def models():
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)
  return [Model(kind, seed) for kind in KINDS for seed in range(3)]


def make_search(options):
  """A search that is compiled once, for whichever model is `current`."""
  current = []

  def logits(*arguments):
    return current[0].logits(*arguments)

  def step(ids, cache):
    position = cache["cache_index"]
    history = cache["history"].at[:, position].set(ids[:, 0])
    found = jax.pure_callback(
        logits, jax.ShapeDtypeStruct((len(ids), VOCAB), jnp.float32),
        cache["row"], history, position)
    return found, {
        "row": cache["row"], "history": history, "cache_index": position + 1}

  arguments = {"num_beams": 4, "length_penalty": 1.0} | options
  arguments = {OURS.get(k, k): v for k, v in arguments.items()}

  @jax.jit
  def run(context):
    cache = {
        "row": jnp.arange(ROWS), "cache_index": jnp.int32(0),
        "history": jnp.zeros((ROWS, LENGTH), jnp.int32)}
    return beam.beam_search(
        step, cache, batch_size=ROWS, max_length=LENGTH, eos_id=EOS,
        rules="hugging_face", penalty=beam.hugging_face_length,
        start_id=context[:, -1], context=context, **arguments)

  def search(model):
    current[:] = [model]
    # One width, so that one program serves all: -1 is no token.
    context = np.full((ROWS, PROMPT), -1, np.int32)
    context[:, PROMPT - model.context.shape[1]:] = model.context
    return jax.device_get(run(context))

  return search


@pytest.mark.parametrize("name", OPTIONS)
def test_the_best_hypotheses_are_those_of_generate(models, name):
  options = OPTIONS[name]
  search = make_search(options)
  cut = ended = 0
  for model in models:
    if model.causal and "forced_bos_token_id" in options:
      continue  # only after one token there
    expected, expected_scores = model.generate(options)
    tokens, scores = search(model)
    np.testing.assert_array_equal(tokens[:, 0], expected)
    np.testing.assert_allclose(scores[:, 0], expected_scores, rtol=1e-4)
    has_end = np.any(expected == EOS, axis=1)
    cut, ended = cut + np.sum(~has_end), ended + np.sum(has_end)
  assert ended  # the comparison is also of endings
  assert cut or "forced_eos_token_id" in options or name == "never_short"


def test_options_change_what_is_found(models):
  """So that the comparisons above are of something."""
  plain = [model.generate({})[0] for model in models]
  same = {name for name, options in OPTIONS.items() if all(
      np.array_equal(model.generate(options)[0], found)
      for model, found in zip(models, plain))}
  assert same <= {"plain", "never"}
