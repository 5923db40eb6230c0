"""Two models to decode with: a table of logits per history, and a torch T5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class HistoryModel:
  """Random logits for every example and every history, and their closed form.

  `step` and `cache` are what the searches take. The cache stores the tokens
  fed so far, so that a cache which does not follow its row gives wrong logits.

  Attributes:
    table: [B, T, V**T, V] logits; `table[b, t, code]` follow the t + 1 tokens
      whose digits to the base V make `code`, `start_id` first.
  """

  def __init__(self, batch, seed=0, vocab=4, length=4, scale=2.0):
    shape = (batch, length, vocab**length, vocab)
    self.table = np.random.default_rng(seed).normal(
        size=shape, scale=scale).astype(np.float32)

  @property
  def cache(self):
    batch, length = self.table.shape[:2]
    return {
        "row": jnp.arange(batch),
        "layer": {
            "history": jnp.zeros((batch, length), jnp.int32),
            "cache_index": jnp.int32(0),
        },
    }

  def step(self, ids, cache):
    table = jnp.asarray(self.table)
    _, length, _, vocab = table.shape
    position = cache["layer"]["cache_index"]
    history = cache["layer"]["history"].at[:, position].set(ids[:, 0])
    code = history @ vocab ** jnp.arange(length)
    layer = {"history": history, "cache_index": position + 1}
    return (
        table[cache["row"], position, code],
        {"row": cache["row"], "layer": layer})

  def log_probs_after(self, row, tokens):
    """The closed form, in float64: log-probabilities [V] after `tokens`."""
    vocab = self.table.shape[-1]
    code = sum(token * vocab**i for i, token in enumerate((0, *tokens)))
    logits = self.table[row, len(tokens), code].astype(np.float64)
    return logits - np.log(np.sum(np.exp(logits)))

  def log_prob(self, row, tokens):
    return sum(
        self.log_probs_after(row, tokens[:i])[token]
        for i, token in enumerate(tokens))


@pytest.fixture(scope="session")
def history_model():
  """Makes `HistoryModel`s."""
  return HistoryModel


class TorchModel:
  """A tiny T5 of Hugging Face: 12 tokens, random weights, 8 prompts.

  Attributes:
    model: the torch module, for `generate`.
    prompts: [8, 5] torch tokens.
  """

  def __init__(self, torch, transformers):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=12, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1, initializer_factor=4.0, tie_word_embeddings=False)
    self.model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
      weight = self.model.lm_head.weight
      weight.mul_(0.2 / weight.std())
      weight[1] = 0.0
      self.prompts = torch.randint(2, 12, (8, 5))
      self._encoded = self.model.encoder(self.prompts).last_hidden_state
    # Random weights never end, or at once: here EOS becomes likelier with the
    # position (0 is in the middle of the other logits), as in a trained model.
    self.model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits + torch.arange(
            -3.0, logits.shape[1] - 3)[:, None] * torch.eye(12)[1])
    self._torch = torch

  def generate(self, **options):
    """Hugging Face's result, up to 12 tokens: tokens and scores as numpy.

    Tokens after EOS are 0; scores are None without beams.
    """
    # No cache there, because the hook needs the whole sequence.
    result = self.model.generate(
        self.prompts, max_new_tokens=12, use_cache=False,
        return_dict_in_generate=True, output_scores=True,
        **{"do_sample": False} | options)
    tokens = result.sequences[:, 1:].numpy()
    ended = np.cumsum(tokens == 1, axis=1) - (tokens == 1) > 0
    tokens = np.where(ended, 0, tokens)
    scores = getattr(result, "sequences_scores", None)
    return (
        np.pad(tokens, ((0, 0), (0, 12 - tokens.shape[1]))),
        None if scores is None else scores.numpy())

  @property
  def cache(self):
    return {
        "row": jnp.arange(8),
        "history": jnp.zeros((8, 12), jnp.int32),
        "cache_index": jnp.int32(0),
    }

  def step(self, ids, cache):
    """Runs the torch decoder over the whole history, without its cache."""
    position = cache["cache_index"]
    history = cache["history"].at[:, position].set(ids[:, 0])
    logits = jax.pure_callback(
        self._logits, jax.ShapeDtypeStruct((ids.shape[0], 12), jnp.float32),
        cache["row"], history, position)
    return logits, {
        "row": cache["row"], "history": history, "cache_index": position + 1}

  def _logits(self, rows, history, position):
    history = np.array(history, np.int64)[:, :int(position) + 1]
    with self._torch.no_grad():
      logits = self.model(
          encoder_outputs=(self._encoded[np.array(rows)],),
          decoder_input_ids=self._torch.from_numpy(history),
          use_cache=False).logits
    return logits[:, -1].numpy()


@pytest.fixture(scope="session")
def torch_model():
  """The torch T5; skips where torch or transformers are not installed."""
  return TorchModel(
      pytest.importorskip("torch"), pytest.importorskip("transformers"))
