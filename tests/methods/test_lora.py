"""LoRA against PEFT, its closed form and merged weights."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.methods import lora
from prompt_tuning.models import (
  causal_lm,
  encoder_decoder,
  layers,
  quantized,
  t5,
)
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

EVERYTHING = (r".*/(query|key|value|out|wi_0|wi_1|wo)", ".*logits_dense")
DELTA = lora.Lora(rank=2, alpha=3.0, targets=EVERYTHING)

pytestmark = pytest.mark.usefixtures("highest_precision")


def assert_relative(found, expected, tolerance=1e-5):
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ----------------------------------------------------------- one Dense, by hand


@pytest.fixture
def dense():
  """A Dense of 5 to 4, its parameters with a delta, and an input."""
  random = np.random.RandomState(0)
  params = {
      "kernel": random.randn(5, 4), "bias": random.randn(4),
      "lora": {"a": random.randn(5, 2), "b": random.randn(2, 4)}}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  module = layers.Dense(4, ("embed", "mlp"), use_bias=True)
  return module, params, random.randn(3, 5).astype(np.float32)


def run(delta, module, params, *arguments, method=None, **options):
  with lora.interception.applied(delta):
    return module.apply({"params": params}, *arguments, method=method,
                        **options)


HERE = lora.Lora(rank=2, alpha=3.0, targets=("",))  # the Dense has no path


def test_the_formula(dense):
  module, params, x = dense
  delta = params["lora"]
  expected = (x @ params["kernel"] + params["bias"]
              + x @ delta["a"] @ delta["b"] * 1.5)
  np.testing.assert_allclose(run(HERE, module, params, x), expected, atol=1e-5)
  kernel = run(HERE, module, params, 5, method=module.kernel)
  np.testing.assert_allclose(
      kernel, params["kernel"] + delta["a"] @ delta["b"] * 1.5, atol=1e-6)


def test_without_a_match_nothing_changes(dense):
  module, params, x = dense
  other = lora.Lora(targets=("query",))
  np.testing.assert_array_equal(
      run(other, module, params, x), run(None, module, params, x))


def test_dropout_keeps_the_mean(dense):
  module, params, x = dense
  delta = lora.Lora(rank=2, alpha=3.0, targets=("",), dropout=0.3)
  plain = run(HERE, module, params, x)
  np.testing.assert_array_equal(run(delta, module, params, x), plain)

  def one(key, argument, method):
    return run(delta, module, params, argument, method=method,
               rngs={"dropout": key})

  keys = jax.random.split(jax.random.key(0), 4000)
  for argument, method, expected in (
      (x, None, plain),
      (5, module.kernel, run(HERE, module, params, 5, method=module.kernel))):
    draws = jax.vmap(lambda key: one(key, argument, method))(keys)  # noqa: B023
    error = draws.std(0) / np.sqrt(len(keys))
    assert error.min() > 0  # it does drop
    assert (np.abs(draws.mean(0) - expected) < 5 * error).all()


def test_bfloat16_activations_stay(dense):
  module, params, x = dense
  module = module.clone(dtype=jnp.bfloat16)
  assert run(HERE, module, params, x).dtype == jnp.bfloat16
  kernel = run(HERE, module, params, 5, method=module.kernel)
  assert kernel.dtype == jnp.bfloat16


# ------------------------------------------------------------------ in a model


def test_training_starts_from_the_base():
  """a is uniform below 1/sqrt(in), as PEFT's; b is zero."""
  axes = ("embed", "mlp")
  a = np.asarray(lora.Down(3, axes).init(
      jax.random.key(0), 400)["params"]["a"])
  b = lora.Up(3, axes).init(jax.random.key(0), 7)["params"]["b"]
  assert a.shape == (400, 3) and b.shape == (3, 7)
  assert a.dtype == b.dtype == np.float32
  assert 0.95 / 20 < np.abs(a).max() <= 1 / 20
  assert abs(a.var() * 3 * 400 - 1) < 0.1  # bound^2 / 3
  assert not np.any(b)


def test_targets_get_a_delta_and_nothing_else_does(delta_t5):
  shapes, _ = delta_t5.model(lora.Lora(rank=3)).abstract()
  found = {path.removesuffix("/lora/a")
           for path in state_lib.flatten(shapes) if path.endswith("/lora/a")}
  assert found == {
      f"{block}/{name}" for name in ("query", "value") for block in (
          "encoder/layers_0/attention", "encoder/layers_1/attention",
          "decoder/layers_0/self_attention",
          "decoder/layers_0/encoder_decoder_attention")}


def test_logical_axes_are_the_kernels(delta_t5):
  shapes, axes = delta_t5.model(DELTA, scan_layers=True).abstract()
  found = axes["decoder"]["layers"]["mlp"]["wo"]["lora"]
  assert found == {"a": ("layers", "mlp", "lora_rank"),
                   "b": ("layers", "lora_rank", "embed")}
  assert shapes["encoder"]["layers"]["mlp"]["wo"]["lora"]["a"].shape == (
      2, 10, 2)


def test_both_ways_of_cross_attention_agree(delta_t5, monkeypatch):
  """Through the kernels and through keys and values; gradients too."""
  model = delta_t5.model(DELTA)
  params = delta_t5.params(model)
  trainable, frozen = state_lib.split(params, [".*/lora/.*"])

  def loss(trainable):
    return model.loss(state_lib.merge(trainable, frozen), delta_t5.batch)[0]

  found = []
  for few in (True, False):
    monkeypatch.setattr(layers, "few_queries", lambda *_, few=few: few)
    found.append(jax.jit(jax.value_and_grad(loss))(trainable))
  assert_relative(found[0][0], found[1][0])
  cross = found[0][1]["decoder"]["layers_0"]["encoder_decoder_attention"]
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(cross["key"]))
  largest = max(np.abs(g).max() for g in jax.tree.leaves(found[1][1]))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(
      one, other, rtol=0, atol=1e-5 * largest), found[0][1], found[1][1])


def test_merging_into_int8_is_refused():
  kernel = quantized.Int8(jnp.ones((3, 2), jnp.int8), jnp.ones((1, 2)))
  params = {"query": {
      "kernel": kernel, "lora": {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2))}}}
  with pytest.raises(UserError, match="query/kernel is in int8"):
    DELTA.merge(params)


@pytest.mark.parametrize("scan", [False, True])
def test_a_shared_prompt_meets_the_delta_too(scan):
  """Run once or for every example; and as merged weights."""
  config = causal_lm.Config(
      vocab_size=30, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
      head_dim=2, mlp_dim=10, scan_layers=scan)
  factory = functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(length=3))
  targets = (r".*attention/(query|key|value|out)", r".*/mlp/(wi_0|wi_1|wo)")
  delta = lora.Lora(2, 3.0, targets)
  tokens = np.array([[5, 9, 8, 29], [3, 12, 4, 2]])
  params = jax.jit(lambda: run_init(delta, config, factory, tokens))()
  random = np.random.RandomState(0)
  params = jax.tree.map(
      lambda x: np.asarray(0.5 * random.randn(*x.shape), np.float32), params)
  found = [
      jax.jit(functools.partial(
          run, one, causal_lm.CausalLM(config, factory, share_prompt=share)))(
              tree, tokens)
      for one, tree, share in (
          (delta, params, False), (delta, params, True),
          (None, delta.merge(params), True))]
  for other in found[1:]:
    assert_relative(np.asarray(other), np.asarray(found[0]))


def run_init(delta, config, factory, tokens):
  with lora.interception.applied(delta):
    return causal_lm.CausalLM(config, factory).init(
        jax.random.key(0), tokens)["params"]


# ------------------------------------------------------ one a of several layers


FUSED = lora.Lora(2, 3.0, (".*attention/(query|key|value)",),
                  fused=("query", "key", "value"))


@pytest.mark.parametrize("scan", [False, True])
def test_a_fused_delta_is_one_with_equal_a(scan):
  """Logits; and by the chain rule, the gradient of a is the sum of theirs."""
  config = causal_lm.Config(
      vocab_size=30, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
      head_dim=2, mlp_dim=10, scan_layers=scan)
  module = causal_lm.CausalLM(config)
  tokens = np.array([[5, 9, 8, 29], [3, 12, 4, 2]])
  with lora.interception.applied(FUSED):
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), tokens)["params"]
  random = np.random.RandomState(0)
  params = jax.tree.map(
      lambda x: np.asarray(0.5 * random.randn(*x.shape), np.float32), shapes)
  deltas = [path for path in state_lib.flatten(params) if "/lora/" in path]
  layers_ = ["layers"] if scan else ["layers_0", "layers_1"]
  assert sorted(deltas) == sorted(
      f"decoder/{layer}/attention/{name}" for layer in layers_ for name in (
          "query/lora/a", "query/lora/b", "key/lora/b", "value/lora/b"))
  apart = lora.Lora(2, 3.0, FUSED.targets)

  def total(delta, params):
    logits = run(delta, module, params, tokens)
    return (logits * np.linspace(-1, 1, logits.size).reshape(
        logits.shape)).sum(), logits

  (_, found), ours = jax.value_and_grad(
      functools.partial(total, FUSED), has_aux=True)(params)
  (_, expected), theirs = jax.value_and_grad(
      functools.partial(total, apart), has_aux=True)(FUSED.unshared(params))
  assert_relative(np.asarray(found), np.asarray(expected))
  merged = run(None, module, FUSED.merge(params), tokens)
  assert_relative(np.asarray(merged), np.asarray(expected))
  ours, theirs = state_lib.flatten(ours), state_lib.flatten(theirs)
  for path in deltas:
    gradient = theirs[path]
    if path.endswith("/a"):
      gradient = sum(
          theirs[path.replace("query", name)] for name in FUSED.fused)
    assert np.abs(gradient).max() > 1e-2
    assert_relative(np.asarray(ours[path]), np.asarray(gradient), 2e-5)


def test_a_fused_deltas_input_is_dropped_once():
  """Equal siblings then give equal outputs; others draw masks of their own."""

  class Pair(nn.Module):

    @nn.compact
    def __call__(self, x):
      return [layers.Dense(4, ("embed", "mlp"), name=name)(x)
              for name in ("query", "key")]

  x = np.random.RandomState(0).randn(3, 50).astype(np.float32)
  both = {}
  for fused in (("query", "key"), ()):
    delta = lora.Lora(
        2, 3.0, ("query", "key"), dropout=0.5, fused=fused)
    with lora.interception.applied(delta):
      params = Pair().init(jax.random.key(0), x)["params"]
    random = np.random.RandomState(1)
    a, b, kernel = (random.randn(*shape).astype(np.float32)
                    for shape in ((50, 2), (2, 4), (50, 4)))
    values = {"a": a, "b": b, "kernel": kernel}
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: values[path[-1].key], params)  # noqa: B023
    both[bool(fused)] = run(
        delta, Pair(), params, x, rngs={"dropout": jax.random.key(2)})
  np.testing.assert_array_equal(*both[True])
  assert np.abs(np.subtract(*both[False])).max() > 0.1
  assert np.abs(both[True][0] - x @ kernel - x @ a @ b * 1.5).max() > 0.1


# --------------------------------------------------------------- what it costs


def test_a_step_makes_no_gradients_of_weights(delta_t5):
  """4 N FLOPs a token, not 6 N; the rest are attention and the deltas."""
  config = t5.Config(
      vocab_size=64, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=256,
      num_encoder_layers=3, num_decoder_layers=1)
  vocabulary = types.SimpleNamespace(eos_id=1)
  model = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config), vocabulary, vocabulary,
      delta=lora.Lora(rank=2))
  shapes, _ = model.abstract()
  tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
  batch = dict.fromkeys(delta_t5.batch, tokens)

  def flops(patterns):
    trainable, frozen = state_lib.split(shapes, patterns)
    optimizer = optax.sgd(0.1)
    state = step_lib.TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), trainable,
        jax.eval_shape(optimizer.init, trainable))
    step = step_lib.make_train_step(model, optimizer)
    compiled = jax.jit(step).lower(
        state, frozen, batch, jax.random.PRNGKey(0)).compile()
    return compiled.cost_analysis()["flops"]

  forward = jax.jit(lambda p, b: model.loss(p, b)[0]).lower(
      shapes, batch).compile().cost_analysis()["flops"]
  # The first layer's inputs need no gradient, so a little below 2.
  assert 1.5 < flops([".*/lora/.*"]) / forward < 2.1
  assert flops([".*"]) / forward > 2.8


# -------------------------------------------------- projections fused elsewhere


@pytest.fixture
def pairs():
  random = np.random.RandomState(0)
  return [(random.randn(6, 2), random.randn(2, width)) for width in (4, 3, 3)]


def products(pairs):
  return np.concatenate([a @ b for a, b in pairs], axis=1)


def test_splitting_a_fused_delta_is_exact(pairs):
  a, b = pairs[0][0], np.random.RandomState(1).randn(2, 10)
  split = lora.from_fused(a, b, (4, 3, 3))
  assert [x.shape for _, x in split] == [(2, 4), (2, 3), (2, 3)]
  np.testing.assert_allclose(products(split), a @ b)
  assert lora.shared_a(split)
  back = lora.to_fused(split, (4, 3, 3), tied=True)
  np.testing.assert_array_equal(back[0], a)
  np.testing.assert_array_equal(back[1], b.astype(np.float32))


def test_joining_trained_deltas_is_exact(pairs):
  assert not lora.shared_a(pairs)
  a, b = lora.to_fused(pairs, (4, 3, 3), tied=False)
  assert a.shape == (6, 6) and b.shape == (6, 10)
  np.testing.assert_allclose(a @ b, products(pairs), atol=1e-6)


def test_joining_leaves_room_for_what_has_no_delta(pairs):
  query, _, value = pairs
  a, b = lora.to_fused([query, None, value], (4, 3, 3), tied=False)
  assert a.shape == (6, 4)
  np.testing.assert_allclose(
      a @ b, products([query, (query[0], np.zeros((2, 3))), value]), atol=1e-6)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, words", [
    ({"rank": 0}, ["LORA_RANK", "0"]),
    ({"rank": 2.0}, ["LORA_RANK", "2.0"]),
    ({"dropout": 1.0}, ["LORA_DROPOUT", "1.0"]),
    ({"targets": ".*query"}, ["Lora.targets", "['.*query']"]),
    ({"targets": ["(query"]}, ["Lora.targets", "(query"])])
def test_bad_options_are_named(options, words):
  with pytest.raises(UserError) as error:
    lora.Lora(**options)
  assert all(word in str(error.value) for word in words)


def test_a_pattern_that_matches_nothing_is_named(delta_t5):
  model = delta_t5.model(lora.Lora(targets=(".*/query", ".*/q_proj")))
  with pytest.raises(UserError, match=r"q_proj.*layers_0/"):
    model.abstract()


# ----------------------------------------------------------------------- PEFT


@pytest.mark.parity
@pytest.mark.parametrize("family, names, few", [
    ("t5", ["q", "v"], False),
    ("t5", ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], True),
    ("gpt2", ["c_attn", "c_proj"], None),
    ("llama", ["q_proj", "v_proj", "gate_proj", "down_proj"], None)])
def test_logits_and_gradients_are_pefts(
    with_peft, monkeypatch, family, names, few):
  """Where three of our layers are one module there, so are their gradients."""
  peft = pytest.importorskip("peft")
  if few is not None:
    monkeypatch.setattr(layers, "few_queries", lambda *_: few)
  both = with_peft(family, peft.LoraConfig(
      r=3, lora_alpha=5, target_modules=names, fan_in_fan_out=family == "gpt2",
      task_type="SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"))
  assert (both.delta.rank, both.delta.alpha) == (3, 5)
  expected, theirs = both.theirs()
  logits, ours = both.ours()
  assert_relative(logits, expected)
  largest = max(np.abs(g).max() for g in theirs.values())
  assert largest > 1e-3
  for (module, kind), gradient in theirs.items():
    parts = both.parts(module)
    if kind == "lora_A":
      found = sum(ours.pop(f"{path}/lora/a") for path in parts).T
    else:
      found = np.empty_like(gradient)
      for path, outputs in parts.items():
        found[outputs] = ours.pop(f"{path}/lora/b").T
    np.testing.assert_allclose(
        found, gradient, rtol=0, atol=1e-5 * largest, err_msg=module)
  assert not ours
