"""LOPA and IDPG: formulas, parameter counts, and each model's own prompt.

Oracles: the formulas in float64 with NumPy, finite differences of them, the
counts of trained parameters that the paper and its code state (Jain et al.
2024, arXiv 2405.15282), and each example's own prompt written out.
"""

import dataclasses
import functools
import importlib.util
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors, prompts
from prompt_tuning.decoding import beam
from prompt_tuning.methods import heads, instance, low_rank
from prompt_tuning.models import causal_lm, decoder_only, encoder_decoder, t5
from prompt_tuning.train import members, sharding
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

B, P, H, E, R = 3, 4, 6, 5, 2
TOKENS = np.array([[3, 4, 5], [6, 7, 0], [8, 0, 0]])


def random_like(shapes, seed=0, scale=0.7):
  draw = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: np.asarray(draw.normal(0.0, scale, s.shape), np.float32),
      shapes)


def parameters_of(module, encoding, width=H):
  """Random parameters of a prompt's module, and the call on them."""
  embedded = np.zeros((B, 3, width), np.float32)
  known = prompts.Instance(encoding=encoding)
  shapes = jax.eval_shape(
      lambda: module.init(jax.random.PRNGKey(0), TOKENS, embedded, known))
  apply = jax.jit(lambda params, rngs=None: module.apply(
      {"params": params}, TOKENS, embedded, known, rngs=rngs))
  return random_like(shapes["params"]), apply


def shared_prompt(length=P):
  return prompts.Prompt(length, nn.initializers.normal(1.0))


def head(params, encoding):
  """The formula of `heads.Head`, in float64."""
  one, two = (
      {name: np.asarray(value, np.float64) for name, value in part.items()}
      for part in (params["hidden"], params["out"]))
  hidden = np.tanh(encoding.astype(np.float64) @ one["kernel"] + one["bias"])
  return hidden @ two["kernel"] + two["bias"]


def lopa(params, encoding, fusion="gate"):
  """The formula of the paper, section 3, in float64, by loops over indices."""
  shared = np.asarray(params["shared"]["prompt"], np.float64)
  row, column = head(params["row"], encoding), head(params["column"], encoding)
  own = np.zeros((len(encoding), P, H))
  for b, i, j, k in np.ndindex(len(encoding), P, H, R):
    own[b, i, j] += row[b, i * R + k] * column[b, j * R + k]
  shared = np.broadcast_to(shared, own.shape)
  return {"gate": lambda: shared / (1 + np.exp(-own)),
          "add": lambda: shared + own,
          "max": lambda: np.where(shared > own, shared, own),
          "concat": lambda: np.concatenate([shared, own], axis=1)}[fusion]()


@pytest.fixture(scope="module")
def encoding():
  return np.random.default_rng(5).normal(size=(B, E)).astype(np.float32)


@pytest.mark.parametrize("fusion", low_rank.FUSIONS)
def test_low_rank_formula(encoding, fusion):
  params, apply = parameters_of(
      low_rank.LowRankPrompt(shared_prompt(), R, fusion), encoding)
  got = apply(params)
  assert got.shape == (B, 2 * P if fusion == "concat" else P, H)
  np.testing.assert_allclose(
      got, lopa(params, encoding, fusion), rtol=2e-6, atol=2e-6)


def test_low_rank_gradient(encoding):
  """Along random directions, against central differences in float64."""
  params, apply = parameters_of(
      low_rank.LowRankPrompt(shared_prompt(), R), encoding)
  weights = np.random.default_rng(1).normal(size=(B, P, H))
  gradient = jax.grad(lambda p: jnp.sum(apply(p) * weights))(params)

  def value(direction, step):
    moved = jax.tree.map(
        lambda p, d: p.astype(np.float64) + step * d, params, direction)
    return np.sum(lopa(moved, encoding) * weights)

  for seed in range(3):
    direction = random_like(params, seed + 10, 1.0)
    want = (value(direction, 1e-5) - value(direction, -1e-5)) / 2e-5
    got = sum(np.sum(g * d) for g, d in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_instance_formula(encoding):
  params, apply = parameters_of(instance.InstancePrompt(P), encoding)
  np.testing.assert_allclose(
      apply(params), head(params["own"], encoding).reshape(B, P, H),
      rtol=2e-6, atol=2e-6)


def test_phm_kernel_is_a_sum_of_kronecker_products():
  draw = np.random.default_rng(2)
  rules, weights = draw.normal(size=(3, 3, 3)), draw.normal(size=(3, 2, 4))
  want = sum(np.kron(rule, part) for rule, part in zip(rules, weights))
  np.testing.assert_allclose(
      heads.phm_kernel(rules, weights), want, rtol=1e-5, atol=1e-5)


def test_phm_head_formula():
  encoding = np.random.default_rng(3).normal(size=(B, 6)).astype(np.float32)
  params, apply = parameters_of(instance.InstancePrompt(
      P, functools.partial(heads.Head, width=4, phm=2)), encoding)
  for layer in params["own"].values():
    layer["kernel"] = sum(
        np.kron(r, w) for r, w in zip(layer["rules"], layer["weights"]))
  got = apply(jax.tree.map(lambda x: x, {"own": {
      name: {k: v for k, v in layer.items() if k != "kernel"}
      for name, layer in params["own"].items()}}))
  np.testing.assert_allclose(
      got, head(params["own"], encoding).reshape(B, P, H), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def torch_modules(expectations):
  """The script that wrote the expected values."""
  path = expectations.parent / "make_instance_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _compare_with_torch(torch_modules, expected):
  lopa_params, idpg_params, encoding, cotangent = torch_modules.arrays()
  length, width = cotangent.shape[1:]
  known = prompts.Instance(encoding=encoding)
  embedded = np.zeros((len(encoding), 1, width), np.float32)
  found = {}
  for name, module, params in (
      ("lopa", low_rank.LowRankPrompt(
          shared_prompt(length), torch_modules.R), lopa_params),
      ("idpg", instance.InstancePrompt(length), idpg_params)):

    def total(params, module=module):
      prompt = module.apply({"params": params}, None, embedded, known)
      return jnp.sum(prompt * cotangent), prompt

    gradient, found[name] = jax.jit(jax.grad(total, has_aux=True))(params)
    found |= {f"gradient/{path}": value
              for path, value in state_lib.flatten(gradient).items()}
  assert set(found) == set(expected)
  for name, value in found.items():
    np.testing.assert_allclose(
        value, expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_committed_outputs_and_gradients_of_torch(
    torch_modules, expectations):
  _compare_with_torch(
      torch_modules, dict(np.load(expectations / "instance.npz")))


@pytest.mark.parity
def test_torch(torch_modules):
  pytest.importorskip("torch")
  _compare_with_torch(torch_modules, torch_modules.in_torch())


# ------------------------------------------------------------------ the counts

# (width of the model, of the encoding, of the hidden layer): trained parameters
# at rank 1, 2 and 4, and of IDPG, for 10 positions. The first five are of
# CodeSage small, the next of CodeBERT (table in millions), the last of GLUE.
PUBLISHED = {
    (1024, 1024, None): (3_169_290, 4_229_140, 6_348_840, 11_545_600),
    (2048, 1024, None): (4_229_130, 6_338_580, 10_557_480, 22_041_600),
    (2560, 1024, None): (4_759_050, 7_393_300, 12_661_800, 27_289_600),
    (3072, 1024, None): (5_288_970, 8_448_020, 14_766_120, None),
    (4096, 1024, None): (6_348_810, 10_557_460, 18_974_760, 43_033_600),
    (1024, 1024, 256): (800_778, 1_066_516, 1_597_992, 2_894_080)}


def trained(module, width, encoding_width):
  known = prompts.Instance(
      encoding=jax.ShapeDtypeStruct((1, encoding_width), jnp.float32))
  shapes = jax.eval_shape(
      module.init, jax.random.PRNGKey(0),
      jax.ShapeDtypeStruct((1, 1), jnp.int32),
      jax.ShapeDtypeStruct((1, 1, width), jnp.float32), known)["params"]
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("widths", PUBLISHED)
def test_trained_parameters_are_as_many_as_published(widths):
  width, encoding_width, hidden = widths
  make = functools.partial(heads.Head, width=hidden)
  *ranks, idpg = PUBLISHED[widths]
  assert [
      trained(low_rank.LowRankPrompt(shared_prompt(10), rank, head=make),
              width, encoding_width) for rank in (1, 2, 4)] == ranks
  if idpg:
    assert trained(
        instance.InstancePrompt(10, make), width, encoding_width) == idpg


def test_counts_in_millions():
  """The paper's tables for CodeBERT (E 768) with a model of width 2048."""
  found = [trained(low_rank.LowRankPrompt(shared_prompt(10), rank), 2048, 768)
           for rank in (1, 2, 4)]
  assert [round(count / 1e6, 2) for count in found] == [2.78, 4.37, 7.53]
  found = [trained(instance.InstancePrompt(length), 2048, 768)
           for length in (5, 10, 25, 50, 100)]
  assert [round(count / 1e6, 2) for count in found] == [
      8.47, 16.34, 39.96, 79.34, 158.08]


# -------------------------------------------------------------- initial values


def initial(make, width=64):
  module = low_rank.LowRankPrompt(shared_prompt(10), 2, head=make)
  encoding = jnp.ones((1, width))
  known = prompts.Instance(encoding=encoding)
  embedded = jnp.zeros((1, 1, width))
  params = module.init(
      jax.random.PRNGKey(0), jnp.ones((1, 1), int), embedded, known)["params"]
  return params, module.apply({"params": params}, None, embedded, known)


def test_it_starts_at_half_of_the_shared_prompt():
  params, prompt = initial(heads.Head)
  shared = params["shared"]["prompt"]
  np.testing.assert_allclose(prompt[0], shared / 2, rtol=0.02)
  np.testing.assert_allclose(np.std(shared), 1.0, rtol=0.1)
  kernel = params["column"]["hidden"]["kernel"]
  np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.1)
  for side in ("row", "column"):
    for layer in ("hidden", "out"):
      assert not np.any(params[side][layer]["bias"])


def test_original_biases_are_torchs():
  params, _ = initial(functools.partial(heads.Head, original_biases=True))
  bias = np.concatenate([
      params[side]["hidden"]["bias"] for side in ("row", "column")])
  assert 0.9 / 8 < np.abs(bias).max() <= 1 / 8  # 1 / sqrt(64)
  np.testing.assert_allclose(np.std(bias), 1 / 8 / np.sqrt(3), rtol=0.15)
  assert not np.any(params["row"]["out"]["bias"])


def test_scales_are_options():
  params, _ = initial(
      functools.partial(heads.Head, hidden_scale=0.5, out_scale=0.1))
  np.testing.assert_allclose(
      [np.std(params["column"][layer]["kernel"])
       for layer in ("hidden", "out")], [0.5, 0.1], rtol=0.1)


def test_phm_starts_as_torchs_xavier():
  """Bounds of torch.nn.init.xavier_uniform_ on [n, n, n], [n, o / n, i / n]."""
  layer = heads.Layer(
      64, ("prompt_embed", "prompt_hidden"), 0.02, nn.initializers.zeros, 4)
  params = layer.init(jax.random.PRNGKey(0), jnp.ones((1, 32)))["params"]
  for name, bound in (("rules", math.sqrt(6 / (16 + 16))),
                      ("weights", math.sqrt(6 / (16 * 8 + 4 * 8)))):
    assert 0.9 * bound < np.abs(params[name]).max() <= bound, name


def test_dropout_is_of_the_encoding_and_in_training_alone(encoding):
  """One kept number of an encoding is scaled by what is dropped."""
  make = functools.partial(heads.Head, dropout=0.5)
  params, apply = parameters_of(instance.InstancePrompt(P, make), encoding)
  plain = apply(params)
  np.testing.assert_array_equal(plain, apply(params))
  key = jax.random.PRNGKey(0)
  dropped = apply(params, rngs={"dropout": key})
  masks = [np.array(list(np.binary_repr(i, E)), float) for i in range(2**E)]
  for row in range(B):
    candidates = [
        head(params["own"], encoding[row] * mask / 0.5) for mask in masks]
    assert min(np.abs(c - np.ravel(dropped[row])).max() for c in candidates) < (
        1e-5)
  assert not np.allclose(dropped, plain)


def test_pooled_is_the_mean_of_the_input(encoding):
  embedded = np.random.default_rng(4).normal(size=(2, 4, 3)).astype(np.float32)
  is_input = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
  got = heads.pooled(jnp.asarray(embedded, jnp.bfloat16), is_input)
  rounded = np.asarray(jnp.asarray(embedded, jnp.bfloat16), np.float64)
  np.testing.assert_allclose(got[0], rounded[0, :2].mean(0), rtol=1e-6)
  assert got.dtype == jnp.float32 and not np.any(got[1])


@pytest.mark.parametrize("rank", [0, 5])
def test_refused_ranks(encoding, rank):
  with pytest.raises(errors.UserError, match="ranks from 1 to 4"):
    parameters_of(low_rank.LowRankPrompt(shared_prompt(), rank), encoding)


def test_refused_options(encoding):
  with pytest.raises(errors.UserError, match="it can be gate, concat"):
    parameters_of(
        low_rank.LowRankPrompt(shared_prompt(), 1, "product"), encoding)
  with pytest.raises(errors.UserError, match="a divisor of both"):
    parameters_of(instance.InstancePrompt(
        P, functools.partial(heads.Head, phm=2)), encoding)


# ------------------------------------------------------------ inside of models

EOS = 1
INPUTS = [[7, 8, 9], [3, 4, 11, 12, 13], [2]]
TARGETS = [[2, 2, EOS], [9, EOS], [5, 6, 8, EOS]]
VOCABULARY = types.SimpleNamespace(eos_id=EOS)


class Encoder:
  width = E


def causal(encoder=None, prompt=None, **changes):
  config = causal_lm.Config(
      vocab_size=30, embed_dim=H, num_layers=2, num_heads=2, head_dim=4,
      mlp_dim=12, max_positions=40, **changes)
  factory = functools.partial(train_prompts.Prompt, prompt or (
      low_rank.LowRankPrompt(shared_prompt(), R)))
  return decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(config, factory), VOCABULARY,
      instance_encoder=encoder)


def tiny_t5(encoder=None, prompt=None, **changes):
  config = t5.Config(
      vocab_size=30, embed_dim=H, num_heads=2, head_dim=3, mlp_dim=10,
      num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=8,
      relpos_max_distance=8, **changes)
  factory = functools.partial(train_prompts.Prompt, prompt or (
      low_rank.LowRankPrompt(shared_prompt(), R)))
  return encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config, factory), VOCABULARY, VOCABULARY,
      instance_encoder=encoder)


BUILD = {"causal": causal, "t5": tiny_t5}
SIDE = {"causal": "decoder", "t5": "encoder"}


def batch_of(model, rows=slice(None), encoding=None, length=6):
  found = model.features.padded(INPUTS[rows], TARGETS[rows], length, 4)
  return found if encoding is None else {
      **found, "instance_encodings": encoding[rows]}


def own_prompts(kind, params, encoding):
  """Each example's prompt by the formula; encoded by table rows' mean if None.
  """
  table = np.asarray(params["token_embedder"]["embedding"])
  if encoding is None:
    encoding = np.stack([table[ids].mean(0) for ids in INPUTS])
  return lopa(params[SIDE[kind]]["prompt"]["prompt"], encoding)


@pytest.mark.parametrize("kind, encoded, scan", [
    ("causal", False, False), ("causal", True, True), ("t5", False, True),
    ("t5", True, False)])
def test_each_example_has_its_own_prompt(kind, encoded, scan, encoding):
  """Loss and decoding, row by row, with a plain prompt of that row's own."""
  encodings = encoding if encoded else None
  model = BUILD[kind](Encoder if encoded else None, scan_layers=scan)
  plain = BUILD[kind](prompt=shared_prompt(), scan_layers=scan)
  params = random_like(model.abstract()[0], 7, 0.4)

  def everything(model):
    return jax.jit(lambda params, batch: (
        model.loss(params, batch)[1]["loss"], model.score(params, batch),
        model.predict(params, batch)))

  loss, scores, decoded = everything(model)(
      params, batch_of(model, encoding=encodings))
  of_plain = everything(plain)
  total = 0.0
  for i, prompt in enumerate(own_prompts(kind, params, encodings)):
    side = params[SIDE[kind]] | {
        "prompt": {"prompt": {"prompt": prompt.astype(np.float32)}}}
    one = of_plain(params | {SIDE[kind]: side},
                   batch_of(plain, slice(i, i + 1)))
    total += one[0]
    np.testing.assert_allclose(scores[i], one[1][0], rtol=2e-5)
    np.testing.assert_array_equal(decoded[i], one[2][0])
  np.testing.assert_allclose(loss, total, rtol=2e-5)


@pytest.mark.parametrize("kind, scan", [("causal", True), ("t5", False)])
def test_beams_have_their_examples_prompt(kind, scan, encoding):
  """All hypotheses and scores, row by row, with a plain prompt of that row."""
  search = {"decode_fn": functools.partial(beam.beam_search, num_beams=3)}
  model, plain = (
      dataclasses.replace(BUILD[kind](*arguments, scan_layers=scan), **search)
      for arguments in ([Encoder], [None, shared_prompt()]))
  params = random_like(model.abstract()[0], 7, 0.4)
  tokens, scores = jax.jit(model.decodes)(
      params, batch_of(model, encoding=encoding))
  assert tokens.shape[:2] == (3, 3)
  of_plain = jax.jit(plain.decodes)
  for i, prompt in enumerate(own_prompts(kind, params, encoding)):
    side = params[SIDE[kind]] | {
        "prompt": {"prompt": {"prompt": prompt.astype(np.float32)}}}
    one = of_plain(params | {SIDE[kind]: side},
                   batch_of(plain, slice(i, i + 1)))
    np.testing.assert_array_equal(tokens[i], one[0][0])
    np.testing.assert_allclose(scores[i], one[1][0], rtol=2e-5)


@pytest.mark.slow
def test_gradients_of_parts_of_a_batch(encoding):
  """Over 8 devices, in microbatches and of stacked members: the same."""
  model = causal(Encoder)
  params = random_like(model.abstract()[0], 7, 0.4)
  trainable, frozen = state_lib.split(params, [".*/prompt/.*"])
  rows = np.tile(np.arange(3), 3)[:8]
  batch = {name: value[rows] for name, value in batch_of(
      model, encoding=encoding).items()}
  key = jax.random.PRNGKey(0)
  whole = jax.jit(step_lib.make_gradient(model))
  want, _ = whole(trainable, frozen, batch, key, 0)
  spread = sharding.put_batch(batch, sharding.make_mesh())
  assert len(spread["instance_encodings"].sharding.device_set) == 8
  parts = jax.jit(step_lib.make_gradient(model, num_microbatches=2))
  two = jax.tree.map(lambda x: np.stack([x, 2 * x]), trainable)
  members, _ = jax.jit(jax.vmap(
      step_lib.make_gradient(model), (0, None, None, None, None)))(
          two, frozen, batch, key, 0)
  for got in (whole(trainable, frozen, spread, key, 0)[0],
              parts(trainable, frozen, batch, key, 0)[0],
              jax.tree.map(lambda x: x[0], members)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=2e-4, atol=1e-5), got, want)


def test_prompts_are_float32_until_they_are_put_in_place(encoding):
  """A bfloat16 model gets the float32 prompt, rounded once."""
  door = train_prompts.Prompt(low_rank.LowRankPrompt(shared_prompt(), R))
  embedded = jnp.ones((B, 3, H), jnp.bfloat16)
  known = prompts.Instance(encoding=encoding)
  shapes = jax.eval_shape(
      lambda: door.init(jax.random.PRNGKey(0), TOKENS, embedded, known))
  params = random_like(shapes["params"])
  got = door.apply({"params": params}, TOKENS, embedded, known)
  assert got.dtype == jnp.bfloat16 and got.shape == (B, P + 3, H)
  want = lopa(params["prompt"], encoding)
  np.testing.assert_allclose(
      np.asarray(got[:, :P], np.float64), want, rtol=2**-8 * 1.01)


def test_a_sweep_starts_shared_prompts_elsewhere():
  start = nn.initializers.ones
  model = members.with_initializer(causal(), start)
  _, prompt = heads.prompt_of(model.module)
  assert prompt.shared.prompt_init is start and prompt.rank == R
  with pytest.raises(errors.UserError, match="has no prompt with"):
    members.with_initializer(causal(prompt=instance.InstancePrompt(P)), start)
