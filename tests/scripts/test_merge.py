"""Merged weights against the delta's own outputs, and PEFT's recorded ones."""

import json
import shutil

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.errors import UserError
from prompt_tuning.formats import peft
from prompt_tuning.methods import ia3, lora
from prompt_tuning.models import encoder_decoder, t5
from prompt_tuning.scripts import merge
from prompt_tuning.train import state as state_lib

DELTAS = {
    "LORA": lora.Lora(2, 3.0, (r".*/(query|value|wi_0)",)),
    "IA3": ia3.Ia3((r".*attention/(key|value)",), (r".*/mlp/wo",))}
BATCH = {
    "encoder_input_tokens": np.array([[5, 9, 800, 29, 7, 1]]),
    "decoder_input_tokens": np.array([[0, 11, 4]]),
    "decoder_target_tokens": np.array([[11, 4, 1]])}


def model_of(weights, delta=None):
  module = t5.EncoderDecoder(t5.Config(**weights.config))
  return encoder_decoder.EncoderDecoderModel(module, None, None, delta=delta)


def logits(model, params):
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(model.logits)(params, BATCH))


def load(path):
  """The model in a directory, and its parameters."""
  weights = base_lib.open_base(path)
  model = model_of(weights)
  return model, base_lib.load_base(path, model.abstract()[0])


@pytest.mark.parametrize("kind", DELTAS)
def test_the_merged_model_gives_the_deltas_logits(tiny_base, tmp_path, kind):
  weights = base_lib.open_base(tiny_base)
  model = model_of(weights, DELTAS[kind])
  random = np.random.RandomState(0)
  shapes = state_lib.flatten(model.abstract()[0])
  drawn = state_lib.unflatten({
      path: random.normal(float(kind == "IA3"), 0.3, leaf.shape).astype("f4")
      for path, leaf in shapes.items()
      if "/lora/" in path or "/ia3/" in path})
  adapter = peft.from_params(
      drawn, peft.Base.of(weights), kind, DELTAS[kind])
  peft.save(adapter, tmp_path / "adapter")
  base = tmp_path / "base"
  shutil.copytree(tiny_base, base)
  (base / "spiece.model").write_bytes(b"pieces")
  merge.main(["--base", str(base), "--adapter", str(tmp_path / "adapter"),
              "--output", str(tmp_path / "merged")])
  plain, params = load(base)
  merged_model, merged = load(tmp_path / "merged")
  expected = logits(model, state_lib.merge(drawn, params))
  assert np.abs(expected - logits(plain, params)).max() > 0.1
  np.testing.assert_allclose(
      logits(merged_model, merged), expected, rtol=0,
      atol=1e-5 * np.abs(expected).max())
  assert (tmp_path / "merged" / "spiece.model").read_bytes() == b"pieces"
  assert json.loads((tmp_path / "merged" / "config.json").read_text()) == (
      json.loads((base / "config.json").read_text()))


@pytest.mark.parity
@pytest.mark.parametrize("case, base", [
    ("lora_gpt2", "gpt2"), ("ia3_gpt2", "gpt2"), ("ia3_t5", "t5")])
def test_transformers_gives_pefts_logits(shared_data, tmp_path, case, base):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  trained = shared_data / "peft_adapters" / "trained"
  merge.merge(trained / "expected" / f"base_{base}",
              trained / "adapters" / case, tmp_path)
  with np.load(trained / "expected" / f"{case}.npz",
               allow_pickle=False) as file:
    recorded = dict(file)
  auto = (transformers.AutoModelForSeq2SeqLM if base == "t5"
          else transformers.AutoModelForCausalLM)
  inputs = {"input_ids": torch.tensor(recorded["input_ids"])}
  if base == "t5":
    inputs["labels"] = torch.tensor(recorded["labels"])
  with torch.no_grad():
    found = auto.from_pretrained(tmp_path).eval()(**inputs).logits
  np.testing.assert_allclose(found, recorded["logits_nopad"], atol=1e-5)


def test_the_base_is_never_overwritten(tiny_base, tmp_path):
  with pytest.raises(UserError, match="the base itself"):
    merge.merge(tiny_base, tmp_path, tiny_base)


def test_a_prompt_is_not_merged(tiny_base, tmp_path):
  adapter = peft.from_params(
      {"encoder": {"prompt": {"prompt": {"prompt": np.ones((4, 8), "f4")}}}},
      peft.Base.of(base_lib.open_base(tiny_base)), "PROMPT_TUNING")
  peft.save(adapter, tmp_path / "adapter")
  with pytest.raises(UserError, match="PROMPT_TUNING.*only LORA and IA3"):
    merge.merge(tiny_base, tmp_path / "adapter", tmp_path / "merged")
  assert not (tmp_path / "merged").exists()


def test_a_base_that_does_not_state_its_sizes_is_refused(
    shared_data, tmp_path):
  step = shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3"
  with pytest.raises(UserError, match="Hugging Face directory"):
    merge.merge(step, tmp_path, tmp_path / "merged")
