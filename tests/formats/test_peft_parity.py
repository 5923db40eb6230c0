"""What we save, the installed PEFT loads, and it computes what we compute.

Oracle: peft and transformers, live, on tiny random models of each family.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import peft
from prompt_tuning.methods import ia3, interception, lora
from prompt_tuning.models import causal_lm, t5

pytestmark = pytest.mark.parity

TOKENS = np.array([[5, 9, 8, 29, 7, 3], [12, 13, 2, 6, 4, 11]])
TARGETS = np.array([[0, 7, 8], [0, 4, 2]])
TASK = 2
SMALL = {"hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
         "num_attention_heads": 4}
FAMILIES = {
    "gpt2": ("GPT2", {"n_embd": 8, "n_head": 2, "n_layer": 2,
                      "n_positions": 32}),
    "llama": ("Llama", SMALL | {"num_key_value_heads": 2,
                                "tie_word_embeddings": False}),
    "phi": ("Phi", SMALL | {"head_dim": 2, "partial_rotary_factor": 1.0}),
    "phi3": ("Phi3", SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}),
    "codegen": ("CodeGen", {"n_embd": 8, "n_head": 4, "n_layer": 2,
                            "rotary_dim": 2, "n_positions": 32}),
    "bloom": ("Bloom", {"hidden_size": 8, "n_head": 4, "n_layer": 2}),
    "t5": ("T5", {"d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 10,
                  "num_layers": 2, "feed_forward_proj": "gated-gelu",
                  "decoder_start_token_id": 0}),
}


def draw(shape, rng):
  return rng.normal(0.0, 0.5, shape).astype(np.float32)


def delta_params(model_shapes, method):
  rng = np.random.default_rng(0)
  return {
      path: draw(leaf.shape, rng) + (1 if path.endswith("scale") else 0)
      for path, leaf in flax.traverse_util.flatten_dict(
          model_shapes, sep="/").items() if f"/{method}/" in path}


class Pair:
  """A tiny model of a family, in transformers and here."""

  def __init__(self, folder, family):
    self.torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    self.theirs = pytest.importorskip("peft")
    self.torch.manual_seed(0)
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, **options)
    config.initializer_range = 0.3
    plain = (transformers.T5ForConditionalGeneration if family == "t5"
             else transformers.AutoModelForCausalLM.from_config)(config)
    plain.eval().save_pretrained(folder / "base")
    self.plain, self.folder = plain, folder
    weights = base_lib.open_base(folder / "base")
    self.base = peft.Base.of(weights)
    self.config = (t5.Config if family == "t5" else causal_lm.Config)(
        **weights.config)
    self.params = base_lib.load_base(
        folder / "base", self.shapes(self.module(), None))

  def module(self, **doors):
    return (t5.EncoderDecoder if self.base.is_encoder_decoder
            else causal_lm.CausalLM)(self.config, **doors)

  def arguments(self):
    if self.base.is_encoder_decoder:
      return (jnp.asarray(TOKENS), jnp.asarray(TARGETS)), {
          "enable_dropout": False}
    return (jnp.asarray(TOKENS),), {}

  def shapes(self, module, delta):
    positional, named = self.arguments()
    with interception.applied(delta):
      return jax.eval_shape(lambda: module.init(
          jax.random.key(0), *positional, **named))["params"]

  def ours(self, module, extra, delta):
    flat = flax.traverse_util.flatten_dict(self.params, sep="/") | extra
    positional, named = self.arguments()
    with interception.applied(delta):
      return np.asarray(module.apply(
          {"params": flax.traverse_util.unflatten_dict(flat, sep="/")},
          *positional, **named))

  def pefts(self, adapter):
    folder = self.folder / "adapter"
    peft.save(adapter, folder)
    model = self.theirs.PeftModel.from_pretrained(self.plain, folder).eval()
    inputs = {"input_ids": self.torch.tensor(TOKENS)}
    inputs["attention_mask"] = self.torch.ones_like(inputs["input_ids"])
    if self.base.is_encoder_decoder:
      # Which PEFT shifts to TARGETS; multitask prompts take nothing else.
      inputs["labels"] = self.torch.tensor(np.roll(TARGETS, -1, axis=1))
    if adapter.type == "MULTITASK_PROMPT_TUNING":
      inputs["task_ids"] = self.torch.tensor([TASK, TASK])
    with self.torch.no_grad():
      logits = model(**inputs).logits.numpy()
    # PEFT puts its layers into the model itself.
    if adapter.type in ("LORA", "IA3"):
      self.plain = model.unload()
    return logits[:, -(TARGETS if self.base.is_encoder_decoder
                       else TOKENS).shape[1]:]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  made = {}

  def get(family):
    if family not in made:
      made[family] = Pair(tmp_path_factory.mktemp(family), family)
    return made[family]

  return get


DELTAS = {
    "LORA": lora.Lora(2, 6.0, (".*attention/(query|value|out)", ".*/mlp/.*")),
    "IA3": ia3.Ia3()}


@pytest.mark.parametrize("kind", DELTAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_deltas(pair, family, kind):
  """Untied a of fused queries and values: their rank grows in PEFT."""
  both, delta = pair(family), DELTAS[kind]
  extra = delta_params(
      both.shapes(both.module(), delta), kind.lower())
  adapter = peft.from_params(
      flax.traverse_util.unflatten_dict(extra, sep="/"), both.base, kind,
      delta)
  ours = both.ours(both.module(), extra, delta)
  np.testing.assert_allclose(both.pefts(adapter), ours, atol=2e-5)
  assert np.abs(ours - both.ours(both.module(), {}, None)).max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "phi3", "codegen", "bloom"])
def test_fused_deltas(pair, family):
  """One a of queries, keys and values: PEFT has it at the very rank."""
  both = pair(family)
  names = ("query", "key", "value")
  delta = lora.Lora(2, 6.0, (".*attention/(query|key|value)",), fused=names)
  extra = delta_params(both.shapes(both.module(), delta), "lora")
  adapter = peft.from_params(
      flax.traverse_util.unflatten_dict(extra, sep="/"), both.base, "LORA",
      delta)
  assert (adapter.config["r"], adapter.config["lora_alpha"]) == (2, 6)
  assert sum(x.size for x in adapter.tensors.values()) == sum(
      x.size for x in extra.values())
  ours = both.ours(both.module(), extra, delta)
  np.testing.assert_allclose(both.pefts(adapter), ours, atol=2e-5)
  assert np.abs(ours - both.ours(both.module(), {}, None)).max() > 1e-2


def prompt_params(both, kind):
  rng, length = np.random.default_rng(0), 3
  width, path = both.base.embed_dim, both.base.prompt_path
  if kind == "PREFIX_TUNING":
    layer = 2 * both.base.num_kv_heads * both.base.head_dim
    table = draw((length, both.base.num_decoder_layers, layer), rng)
    if both.base.is_encoder_decoder:  # PEFT's layers share theirs
      table[:] = table[:, :1]
    return {"decoder/prefix/prefix": table.reshape(length, -1)}
  if kind == "MULTITASK_PROMPT_TUNING":
    return {f"{path}/prompt": draw((length, width), rng),
            f"{path}/cols": draw((3, length, 2), rng),
            f"{path}/rows": draw((3, 2, width), rng)}
  return {f"{path}/prompt": draw((length, width), rng)}


@pytest.mark.parametrize("kind", [
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts(pair, family, kind):
  both = pair(family)
  extra = prompt_params(both, kind)
  adapter = peft.from_params(
      flax.traverse_util.unflatten_dict(extra, sep="/"), both.base, kind)
  module = both.module(**peft.arguments(adapter, both.base, TASK))
  ours = both.ours(module, extra, None)
  np.testing.assert_allclose(both.pefts(adapter), ours, atol=2e-5)
  assert np.abs(ours - both.ours(both.module(), {}, None)).max() > 1e-2
