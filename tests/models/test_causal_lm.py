"""Decoder-only models: doors, padding, cache; each way equals the plain one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.models import causal_lm
from prompt_tuning.train import prompts as train_prompts

B, T, P = 3, 7, 4

_SMALL = causal_lm.Config(
    vocab_size=90, embed_dim=16, num_layers=2, num_heads=4, head_dim=8,
    mlp_dim=24, max_positions=32)
FAMILIES = {
    "gpt2": dataclasses.replace(
        _SMALL, positions="learned", norm="layer_norm",
        mlp_activations=("gelu",), qkv_bias=True, attention_out_bias=True,
        mlp_bias=True),
    "llama": dataclasses.replace(_SMALL, num_kv_heads=2, tie_logits=False),
    "codegen": dataclasses.replace(
        _SMALL, rotary_dim=4, rotary_interleaved=True, norm="layer_norm",
        parallel_block=True, mlp_activations=("gelu",), mlp_bias=True,
        tie_logits=False, logits_bias=True),
    "bloom": dataclasses.replace(
        _SMALL, positions="alibi", norm="layer_norm", embedding_norm=True,
        qkv_bias=True, mlp_activations=("gelu",)),
    "window": dataclasses.replace(_SMALL, sliding_window=5),
}


def _prompt(combine=train_prompts.prefix_prompt):
  return lambda: train_prompts.Prompt(
      prompts.Prompt(P, nn.initializers.normal(1.0)), combine)


def _tokens(rows=B, length=T):
  return np.random.default_rng(0).integers(0, 90, (rows, length), np.int32)


def _params(module):
  return _random_tree(jax.eval_shape(
      lambda: module.init(jax.random.PRNGKey(0), _tokens()))["params"])


def _random_tree(shapes):
  rng = np.random.default_rng(1)
  return jax.tree.map(
      lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.4, s.dtype),
      shapes)


def _run(module, params, *arguments, **options):
  return jax.jit(lambda p: module.apply({"params": p}, *arguments, **options))(
      params)


@pytest.fixture(params=FAMILIES)
def config(request):
  return FAMILIES[request.param]


def test_a_shared_prompt_is_exact(config):
  """Loss within 1e-6 and gradient within 1e-5 of the concatenated prompt."""
  shared, apart = (causal_lm.CausalLM(config, _prompt(), share_prompt=share)
                   for share in (True, False))
  params, tokens = _params(shared), _tokens()

  def loss(params, module):
    logits = module.apply({"params": params}, tokens[:, :-1])
    return -jnp.mean(jnp.take_along_axis(
        jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))

  found = [jax.jit(jax.value_and_grad(lambda p, m=module: loss(p, m)))(params)
           for module in (shared, apart)]
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
  ours, theirs = (g["decoder"]["prompt"]["prompt"]["prompt"]
                  for _, g in found)
  assert np.abs(theirs).max() > 0
  assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_prompt_after_the_first_token_is_not_shared():
  module = causal_lm.CausalLM(
      FAMILIES["llama"], _prompt(train_prompts.prefix_prompt_after_bos))
  params, tokens = _params(module), _tokens()
  assert _run(module, params, tokens, method=module.shared_prefix) is None
  # By hand: the prompt as rows of the table, in the middle of the text.
  prompt = params["decoder"].pop("prompt")["prompt"]["prompt"]
  table = params["token_embedder"]["embedding"]
  table = jnp.concatenate([table, prompt])
  longer = causal_lm.CausalLM(
      dataclasses.replace(FAMILIES["llama"], vocab_size=90 + P))
  rows = np.broadcast_to(np.arange(90, 90 + P, dtype=np.int32), (B, P))
  text = np.concatenate([tokens[:, :1], rows, tokens[:, 1:]], axis=1)
  head = params["decoder"]["logits_dense"]["kernel"]
  wide = {
      **params, "token_embedder": {"embedding": table},
      "decoder": {**params["decoder"], "logits_dense": {
          "kernel": jnp.pad(head, ((0, 0), (0, P)))}}}
  want = _run(longer, wide, text)[:, P:, :90]
  params["decoder"]["prompt"] = {"prompt": {"prompt": prompt}}
  np.testing.assert_allclose(_run(module, params, tokens), want, atol=1e-5)


def test_a_prompt_that_differs_by_example_is_not_shared():

  class PerExample(nn.Module):

    def __call__(self, tokens, embedded):
      return embedded[:, :P] * 2.0

  def factory():
    return train_prompts.Prompt(PerExample())

  module = causal_lm.CausalLM(FAMILIES["llama"], factory)
  params, tokens = _params(module), _tokens()
  assert _run(module, params, tokens, method=module.shared_prefix) is None


@pytest.mark.parametrize("side,share", [("left", True), ("right", False)])
def test_padding_does_not_change_the_text(config, side, share):
  module = causal_lm.CausalLM(config, _prompt(), share_prompt=share)
  params = _params(module)
  row = _tokens(1, 4)
  alone = _run(module, params, row)[0]
  widths = ((0, 0), (3, 0) if side == "left" else (0, 3))
  padded = np.pad(row, widths, constant_values=7)
  visible = np.pad(np.ones((1, 4), bool), widths)
  logits = _run(module, params, padded, visible=visible)[0]
  np.testing.assert_allclose(
      logits[3:] if side == "left" else logits[:4], alone, atol=1e-5)


@pytest.mark.parametrize(
    "share,scan_layers", [(True, False), (False, True)])
def test_cached_decoding_equals_uncached(config, share, scan_layers):
  config = dataclasses.replace(config, scan_layers=scan_layers)
  module = causal_lm.CausalLM(config, _prompt(), share_prompt=share)
  params, tokens = _params(module), _tokens()
  starts = np.array([3, 1, 2])  # tokens in the cache; padding behind them
  prefix = _run(module, params, tokens, method=module.shared_prefix)
  visible = np.arange(3) < starts[:, None]
  _, state = _run(
      module, params, tokens[:, :3], visible, T, prefix, mutable=["cache"],
      method=module.prefill)
  full = _run(module, params, tokens)

  @jax.jit
  def step(state, ids):
    return module.apply(
        {"params": params, **state}, ids, prefix, mutable=["cache"],
        method=module.decode)

  for i in range(3):
    at = starts + i
    logits, state = step(state, tokens[np.arange(B), at][:, None])
    np.testing.assert_allclose(
        logits, full[np.arange(B), at], atol=2e-5)


def test_an_infix_is_decoded_as_it_is_trained():
  """It stands before the last input, which is a step of its own."""
  module = causal_lm.CausalLM(
      FAMILIES["gpt2"], _prompt(train_prompts.infix_prompt))
  params, tokens = _params(module), _tokens()
  last = np.array([3, 1, 2])[:, None]
  is_input = np.arange(T) <= last
  full = _run(
      module, params, tokens, target_positions=last + np.arange(3),
      instance=prompts.Instance(is_input))
  _, state = _run(
      module, params, tokens[:, :4], np.arange(4) < last, T, None,
      prompts.Instance(is_input[:, :4]), mutable=["cache"],
      method=module.prefill)

  @jax.jit
  def step(state, ids):
    return module.apply(
        {"params": params, **state}, ids, mutable=["cache"],
        method=module.decode)

  for i in range(3):
    ids = np.take_along_axis(tokens, last + i, axis=1)
    logits, state = step(state, ids)
    np.testing.assert_allclose(logits, full[:, i], atol=2e-5)


def test_a_prompt_of_embedded_tokens_is_that_text(config):
  """The keys and values that a prompt leaves are those of its tokens."""
  prompted, plain = causal_lm.CausalLM(config, _prompt()), causal_lm.CausalLM(
      config)
  params, tokens = _params(prompted), _tokens(1)
  table = params["token_embedder"]["embedding"]
  params["decoder"]["prompt"]["prompt"]["prompt"] = table[tokens[0, :P]]
  logits = _run(prompted, params, tokens[:, P:])
  del params["decoder"]["prompt"]
  np.testing.assert_allclose(
      logits, _run(plain, params, tokens)[:, P:], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_scan_and_remat_change_nothing(family):
  config = FAMILIES[family]
  plain = causal_lm.CausalLM(config, _prompt())
  params, tokens = _params(plain), _tokens()
  want = _run(plain, params, tokens)
  stacked = dict(params["decoder"])
  rows = [stacked.pop(f"layers_{i}") for i in range(config.num_layers)]
  stacked["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  for remat in ("dots", "full"):
    scanned = causal_lm.CausalLM(
        dataclasses.replace(config, scan_layers=True, remat=remat), _prompt())
    np.testing.assert_allclose(
        _run(scanned, {**params, "decoder": stacked}, tokens), want,
        atol=1e-5)


def test_fused_attention_gives_the_same_logits():
  plain, fused = (
      causal_lm.CausalLM(dataclasses.replace(
          FAMILIES["llama"], fused_attention=fused), _prompt())
      for fused in (False, True))
  params, tokens = _params(plain), _tokens()
  np.testing.assert_allclose(
      _run(fused, params, tokens), _run(plain, params, tokens), atol=1e-5)


def test_logits_at_target_positions_alone():
  module = causal_lm.CausalLM(FAMILIES["llama"], _prompt())
  params, tokens = _params(module), _tokens()
  wanted = np.array([[1, 2], [4, 5], [0, 6]])
  np.testing.assert_allclose(
      _run(module, params, tokens, target_positions=wanted),
      np.take_along_axis(
          np.asarray(_run(module, params, tokens)), wanted[..., None], 1),
      atol=1e-5)


def test_a_sliding_window_hides_what_is_further_back():
  """One layer sees exactly its window: earlier tokens change nothing."""
  config = dataclasses.replace(
      _SMALL, num_layers=1, sliding_window=3)
  module = causal_lm.CausalLM(config)
  params, tokens = _params(module), _tokens(1)
  other = tokens.copy()
  other[0, 2] = (other[0, 2] + 1) % 90
  logits, changed = (_run(module, params, x)[0] for x in (tokens, other))
  differs = np.abs(logits - changed).max(-1) > 1e-4
  np.testing.assert_array_equal(differs, [0, 0, 1, 1, 1, 0, 0])


@pytest.mark.parametrize("prompt", [None, _prompt()])
def test_longer_than_the_model(prompt):
  module = causal_lm.CausalLM(
      dataclasses.replace(FAMILIES["gpt2"], max_positions=6 + P), prompt)
  longest = 6 if prompt else 6 + P

  def shapes(length):
    return jax.eval_shape(lambda: module.init(
        jax.random.PRNGKey(0), _tokens(length=length)))

  shapes(longest)
  with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS or PROMPT_LEN"):
    shapes(longest + 1)


@pytest.mark.parametrize("wrong,match", [
    (dict(positions="sinus"), "rotary, learned, alibi"),
    (dict(norm="batch"), "rms_norm, layer_norm"),
    (dict(num_kv_heads=3), "NUM_KV_HEADS"),
    (dict(remat="some"), "LAYER_REMAT"),
])
def test_bad_configurations(wrong, match):
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(_SMALL, **wrong)
