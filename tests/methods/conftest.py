"""Tiny models for methods that change projections, and PEFT beside ours."""

import functools
import importlib.util
import pathlib
import types

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import base
from prompt_tuning.formats import peft
from prompt_tuning.methods import interception
from prompt_tuning.models import causal_lm, decoder_only, encoder_decoder, t5
from prompt_tuning.train import state as state_lib

VOCABULARY = types.SimpleNamespace(eos_id=1)


class DeltaT5:
  """A T5 1.1 without a prompt; its numbers are drawn by shapes alone."""

  # Lengths 12 and 7; targets of 3 and 2 tokens; 1 is EOS.
  batch = {
      "encoder_input_tokens": np.array([
          [5, 9, 8, 29, 7, 3, 12, 13, 2, 6, 4, 1],
          [3, 12, 4, 22, 9, 9, 1, 0, 0, 0, 0, 0]]),
      "decoder_input_tokens": np.array([[0, 11, 4], [0, 6, 0]]),
      "decoder_target_tokens": np.array([[11, 4, 1], [6, 1, 0]]),
      "decoder_loss_weights": np.array([[1, 1, 1], [1, 1, 0]])}

  @staticmethod
  def model(delta=None, scan_layers=False, remat="none", **changes):
    """Two encoder layers, one decoder layer, heads of 6."""
    sizes = {
        "vocab_size": 30, "embed_dim": 8, "num_heads": 2, "head_dim": 6,
        "mlp_dim": 10, "num_encoder_layers": 2, "num_decoder_layers": 1}
    config = t5.Config(**sizes | changes, scan_layers=scan_layers, remat=remat)
    return encoder_decoder.EncoderDecoderModel(
        t5.EncoderDecoder(config), VOCABULARY, VOCABULARY, z_loss=0.0,
        delta=delta)

  @classmethod
  def logits(cls, model, params):
    return np.asarray(jax.jit(model.logits)(params, cls.batch))

  @staticmethod
  def params(model):
    """Parameters that give logits of about 1, deltas that change them."""
    random = np.random.RandomState(0)

    def draw(path, leaf):
      array = random.randn(*leaf.shape)
      if path[-1].key == "scale":
        array = 1.0 + 0.2 * array
      elif path[-1].key in ("kernel", "a"):
        array /= np.sqrt(leaf.shape[-2])
      return array.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract()[0])

  @staticmethod
  def stacked(params):
    """`layers_0`, … of both sides as `layers`, leading axis L."""
    out = {"token_embedder": params["token_embedder"]}
    for side in ("encoder", "decoder"):
      names = sorted(n for n in params[side] if n.startswith("layers_"))
      out[side] = {
          name: value for name, value in params[side].items()
          if name not in names}
      out[side]["layers"] = jax.tree.map(
          lambda *leaves: np.stack(leaves),
          *(params[side][name] for name in names))
    return out


@pytest.fixture(scope="session")
def delta_t5():
  return DeltaT5


@pytest.fixture
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(scope="session")
def maker():
  """The script that ran the original: its cases, weights and batches."""
  path = pathlib.Path(__file__).parents[1] / "make_original_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def expected(maker):
  """A function: name of a case -> what the original gave."""

  @functools.cache
  def read(case):
    with np.load(maker.FOLDER / f"{case}.npz", allow_pickle=False) as file:
      return dict(file)

  return read


class Peft:
  """A tiny model of transformers with an adapter, and ours of its files.

  Every number of the adapter is drawn. Both are differentiated through the
  same sum of logits with random weights.

  Attributes:
    delta: what `formats.peft` makes of the adapter.
  """

  tokens = DeltaT5.batch["encoder_input_tokens"]

  def __init__(self, folder, family, config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = pytest.importorskip("peft")
    torch.manual_seed(0)
    name, options = _TINY[family]
    own = getattr(transformers, f"{name}Config")(vocab_size=30, **options)
    plain = (transformers.T5ForConditionalGeneration if family == "t5"
             else transformers.AutoModelForCausalLM.from_config)(own)
    plain.save_pretrained(folder / "base")
    self._peft = theirs.get_peft_model(plain, config).eval()
    for parameter in self._peft.parameters():
      if parameter.requires_grad:
        torch.nn.init.normal_(
            parameter, float(config.peft_type == "IA3"), 0.2)
    self._peft.save_pretrained(folder / "adapter")
    weights = base.open_base(folder / "base")
    self._base = peft.Base.of(weights)
    adapter = peft.load(folder / "adapter")
    self.delta = peft.delta(adapter, self._base)
    self._leaves = peft.to_params(adapter, self._base)
    self._plain, self._model = (
        _our_model(weights, delta) for delta in (None, self.delta))
    self._frozen = base.load_base(
        folder / "base", self._plain.abstract()[0])

  def theirs(self):
    """Logits, and PEFT's gradients by module and parameter."""
    import torch

    inputs = {"input_ids": torch.tensor(self.tokens)}
    if self._base.is_encoder_decoder:
      inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
      inputs["decoder_input_ids"] = torch.tensor(
          DeltaT5.batch["decoder_input_tokens"])
    logits = self._peft(**inputs).logits
    (logits * torch.tensor(self._weights(logits.shape))).sum().backward()
    gradients = {}
    for name, parameter in self._peft.named_parameters():
      if parameter.requires_grad:
        name = name.removeprefix("base_model.model.").replace(".default", "")
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        gradients[module, kind] = parameter.grad.numpy()
    return logits.detach().numpy(), gradients

  def ours(self):
    """Logits, and our gradients by path."""

    def total(leaves):
      params = state_lib.merge(leaves, self._frozen)
      if self._base.is_encoder_decoder:
        logits = self._model.logits(params, DeltaT5.batch)
      else:
        with interception.applied(self.delta):
          logits = self._model.module.apply({"params": params}, self.tokens)
      return (logits * self._weights(logits.shape)).sum(), logits

    gradients, logits = jax.jit(jax.grad(total, has_aux=True))(self._leaves)
    return np.asarray(logits), state_lib.flatten(gradients)

  def parts(self, module):
    """Our layers that one module is there: path -> which of its outputs."""
    return self._base.modules[module].parts

  @staticmethod
  def _weights(shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


_TINY = {
    "t5": ("T5", {
        "d_model": 8, "d_kv": 6, "num_heads": 2, "d_ff": 10, "num_layers": 2,
        "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "initializer_factor": 1.0}),
    "gpt2": ("GPT2", {
        "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16,
        "initializer_range": 0.3}),
    "llama": ("Llama", {
        "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "initializer_range": 0.3, "tie_word_embeddings": False}),
}


def _our_model(weights, delta):
  if weights.family == "t5":
    return encoder_decoder.EncoderDecoderModel(
        t5.EncoderDecoder(t5.Config(**weights.config)), VOCABULARY,
        VOCABULARY, delta=delta)
  return decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(causal_lm.Config(**weights.config)), VOCABULARY,
      delta=delta)


@pytest.fixture(scope="session")
def with_peft(tmp_path_factory):
  """Builds a `Peft` from a family's name and a configuration of PEFT."""
  return lambda family, config: Peft(
      tmp_path_factory.mktemp("peft"), family, config)
