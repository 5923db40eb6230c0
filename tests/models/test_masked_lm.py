"""RoBERTa with its head: logits at `<mask>`, loss, scores, predictions.

Oracles: RobertaForMaskedLM of transformers, committed for one seed and live
for another, without and with a prompt; cross entropy in NumPy's float64; each
text with its own prompt, one by one.
"""

import functools
import importlib.util
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.special

from prompt_tuning import prompts
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.errors import UserError
from prompt_tuning.formats import peft as ours
from prompt_tuning.methods import lora
from prompt_tuning.models import masked_lm, text_encoder
from prompt_tuning.train import prompts as train_prompts


@pytest.fixture(scope="module")
def maker(expectations):
  path = expectations.parent / "make_text_encoder_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def given(expectations):
  with np.load(
      expectations / "masked_lm_roberta.npz", allow_pickle=False) as file:
    return dict(file)


@pytest.fixture(scope="module")
def roberta(given, maker, tmp_path_factory):
  """The directory whose logits are in `given`."""
  folder = tmp_path_factory.mktemp("roberta")
  safetensors.numpy.save_file(
      maker.weights(json.loads(str(given["shapes"])), int(given["seed"])),
      folder / "model.safetensors")
  (folder / "config.json").write_text(str(given["config"]))
  return folder


def build(folder, prompt=None, **options):
  """(model, parameters) of a directory, behind a prompt if given."""
  factory = None
  if prompt is not None:
    factory = functools.partial(
        train_prompts.Prompt, prompt=prompts.Prompt(len(prompt)))
  module = masked_lm.MaskedLM(
      text_encoder.Config(**base.open_base(folder).config), factory)
  vocabulary = types.SimpleNamespace(mask_id=4, eos_id=2)
  model = masked_lm.MaskedLMModel(module, vocabulary, **options)
  wanted, _ = model.abstract()
  if prompt is not None:
    wanted["encoder"].pop("prompt")
  params = base.load_base(folder, wanted, np.float32)
  if prompt is not None:
    params["encoder"]["prompt"] = {"prompt": {"prompt": prompt}}
  return model, params


def batch_of(ids, visible, places, targets=None):
  ones = np.ones((len(ids), 1), np.int32)
  return {
      "encoder_input_tokens": ids,
      "encoder_input_mask": visible.astype(np.int32),
      "encoder_mask_positions": places,
      "decoder_target_tokens": ones if targets is None else targets,
      "decoder_loss_weights": ones}


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


def test_logits_are_those_that_transformers_gave(roberta, given, maker):
  *texts, prompt = maker.masked(int(given["seed"]), 1)
  batch = batch_of(*texts)
  assert 0.5 < np.std(given["logits"]) < 5
  model, params = build(roberta)
  close(jax.jit(model.logits)(params, batch)[:, 0], given["logits"])
  model, params = build(roberta, prompt)
  close(jax.jit(model.logits)(params, batch)[:, 0],
        given["logits_with_prompt"])
  assert np.abs(given["logits"] - given["logits_with_prompt"]).max() > 0.1


@pytest.mark.parity
def test_logits_are_those_of_transformers(tmp_path, maker):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)  # more would only wait for each other
  theirs = maker.model_of_transformers("roberta", 77, "AutoModelForMaskedLM")
  theirs.save_pretrained(tmp_path)
  *texts, prompt = maker.masked(77, 1)
  for one in (None, prompt):
    model, params = build(tmp_path, one)
    close(jax.jit(model.logits)(params, batch_of(*texts))[:, 0],
          maker.logits_of_transformers(theirs, *texts, one))


def test_loss_scores_and_predictions(roberta, maker, given):
  """All of the same logits, whose oracle is above."""
  *texts, _ = maker.masked(int(given["seed"]), 1)
  targets = np.array([[7], [11], [40]], np.int32)
  batch = batch_of(*texts, targets)
  model, params = build(roberta)
  chances = scipy.special.log_softmax(given["logits"].astype(np.float64), -1)
  wanted = np.take_along_axis(chances, targets, 1)[:, 0]
  total, sums = jax.jit(model.loss)(params, batch)
  np.testing.assert_allclose(total, -wanted.sum(), rtol=1e-5)
  assert float(sums["tokens"]) == 3
  close(jax.jit(model.score)(params, batch), wanted)
  words = np.array([5, 9], np.int32)
  close(jax.jit(model.score_first)(params, batch, words), chances[:, words])
  tokens, scores = jax.jit(model.decodes)(params, batch)
  assert tokens.tolist() == chances.argmax(-1)[:, None, None].tolist()
  close(scores[:, 0], chances.max(-1))
  assert model.predict(params, batch).shape == (3, 1)


def test_gradients_of_the_prompt_are_finite_differences(
    roberta, maker, given):
  *texts, prompt = maker.masked(int(given["seed"]), 1)
  batch = batch_of(*texts, np.array([[7], [11], [40]], np.int32))
  model, params = build(roberta, prompt)

  @jax.jit
  def loss(prompt):
    changed = {**params, "encoder": {
        **params["encoder"], "prompt": {"prompt": {"prompt": prompt}}}}
    return model.loss(changed, batch)[0]

  gradient = jax.jit(jax.grad(loss))(prompt)
  direction = np.random.default_rng(0).normal(size=prompt.shape)
  direction = (direction / np.linalg.norm(direction)).astype(np.float32)
  step = 1e-2
  slope = (loss(prompt + step * direction) - loss(prompt - step * direction)
           ) / (2 * step)
  np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=5e-3)


class OwnPrompt(nn.Module):
  """Each example's prompt: its first embedding, twice."""

  @nn.compact
  def __call__(self, x, x_embed):
    return jnp.repeat(x_embed[:, :1], 2, axis=1)


def test_a_prompt_of_each_example(roberta, maker, given):
  ids, visible, places, _ = maker.masked(int(given["seed"]), 1)
  model, params = build(roberta)
  own = masked_lm.MaskedLM(
      model.module.config,
      functools.partial(train_prompts.Prompt, prompt=OwnPrompt()))
  got = own.apply({"params": params}, ids, visible, places)[:, 0]
  table = params["token_embedder"]["embedding"]
  for i, first in enumerate(ids[:, 0]):
    one, its = build(roberta, np.stack([table[first]] * 2))
    row = slice(i, i + 1)
    close(got[row], one.module.apply(
        {"params": its}, ids[row], visible[row], places[row])[:, 0])


def test_what_is_saved_is_read(roberta, tmp_path):
  """The head is part of what is saved, and of the file."""
  _, params = build(roberta)
  config = text_encoder.Config(**base.open_base(roberta).config)
  hugging_face.save(tmp_path, params, config, np.float32)
  theirs = safetensors.numpy.load_file(roberta / "model.safetensors")
  ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert set(ours) == set(theirs)
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array)
  again = json.loads((tmp_path / "config.json").read_text())
  assert again["architectures"] == ["RobertaForMaskedLM"]


def test_a_folder_without_the_head_is_refused(roberta, tmp_path):
  content = json.loads((roberta / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(
      content | {"architectures": ["RobertaModel"]}))
  (tmp_path / "model.safetensors").symlink_to(roberta / "model.safetensors")
  with pytest.raises(UserError, match="lacks 5 .*lm_head/bias"):
    build(tmp_path)


def test_lengths(roberta, maker):
  prompt = maker.masked(0, 1)[3]
  model, _ = build(roberta, prompt)
  model.check_lengths({"inputs": 15, "targets": 1})
  with pytest.raises(UserError, match="21 tokens, prompt.*20 positions"):
    model.check_lengths({"inputs": 16, "targets": 1})
  with pytest.raises(UserError, match="predicts one token: set it to 1"):
    model.check_lengths({"inputs": 8, "targets": 2})


@pytest.mark.parity
def test_peft_reads_its_lora(tmp_path, maker):
  peft = pytest.importorskip("peft")
  pytest.importorskip("transformers")
  theirs = maker.model_of_transformers("roberta", 5, "AutoModelForMaskedLM")
  theirs.save_pretrained(tmp_path / "base")
  *texts, _ = maker.masked(5, 1)
  plain, params = build(tmp_path / "base")
  delta = lora.Lora(rank=2, alpha=8, targets=(".*attention/(query|value)",))
  model = masked_lm.MaskedLMModel(plain.module, plain.vocabulary, delta=delta)
  variables = model.init(jax.random.key(0))["params"]["encoder"]
  draw, trained = np.random.default_rng(0), {}
  for layer in ("layers_0", "layers_1"):
    for name in ("query", "value"):
      made = jax.tree.map(
          lambda x: draw.normal(size=x.shape).astype(np.float32) / 8,
          variables[layer]["attention"][name]["lora"])
      params["encoder"][layer]["attention"][name]["lora"] = made
      trained.setdefault(layer, {}).setdefault("attention", {})[name] = {
          "lora": made}
  adapter = ours.from_params(
      {"encoder": trained}, ours.Base.of(base.open_base(tmp_path / "base")),
      "LORA", delta)
  ours.save(adapter, tmp_path / "adapter")
  adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
  logits = jax.jit(model.logits)(params, batch_of(*texts))[:, 0]
  close(logits, maker.logits_of_transformers(adapted, *texts))
  assert np.abs(
      logits - jax.jit(plain.logits)(params, batch_of(*texts))[:, 0]
  ).max() > 0.01


def test_lora_changes_its_projections(roberta, maker, given):
  """Merged into the kernels it gives the same logits."""
  *texts, _ = maker.masked(int(given["seed"]), 1)
  batch = batch_of(*texts)
  plain, base_params = build(roberta)
  delta = lora.Lora(
      rank=2, alpha=8, targets=(".*attention/(query|key|value)",))
  model = masked_lm.MaskedLMModel(
      plain.module, plain.vocabulary, delta=delta)
  variables = model.init(jax.random.key(0))["params"]
  draw = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x, base_params)
  for layer in ("layers_0", "layers_1"):
    for name in ("query", "key", "value"):
      made = variables["encoder"][layer]["attention"][name]["lora"]
      params["encoder"][layer]["attention"][name]["lora"] = jax.tree.map(
          lambda x: draw.normal(size=x.shape).astype(np.float32) / 8, made)
  got = jax.jit(model.logits)(params, batch)
  close(got, jax.jit(plain.logits)(delta.merge(params), batch))
  assert np.abs(got[:, 0] - given["logits"]).max() > 0.1
