"""The contenders of `scripts.benchmark`: a step of ours, PEFT's, transformers'.

Each contender is a pair of functions: one builds what is timed and gives a
function without arguments, the other gives a product of matrices in the same
library and dtype. The function may give a dict that the benchmark is told:
`seconds`, if not all of them count, or the `tokens` that were decoded.
"""

import functools
import os

LEARNING_RATE = 0.3
DTYPES = ("float32", "bfloat16")


def t5(targets: int | None):
  """T5 1.1 small; `targets` is fixed."""
  del targets
  return contenders({"ours": _our_t5, "PEFT": _peft_t5})


def causal(batch: int, text: int, prompt: int, targets: int | None):
  """SmolLM2-135M's geometry; loss on the text's last `targets` tokens."""
  shape = batch, text, prompt, targets or text - 1
  return contenders({
      "ours": functools.partial(_our_causal, shape),
      "PEFT": functools.partial(_peft_causal, shape)})


def saving(targets: int | None):
  """What a training step waits for at a save; `targets` is not used."""
  del targets
  return {"ours, float32": (
      _our_save, functools.partial(our_matmul, "float32"))}


def lopa(targets: int | None):
  """Prompts per example, beside prompt tuning's; SmolLM2's geometry."""
  return _variants(targets, {
      "one a row": {"shared": False}, "shared": {}, "LOPA": {"lopa_rank": 4}})


def prefix(targets: int | None):
  """Prefix tuning's step beside prompt tuning's; SmolLM2's geometry."""
  return _variants(targets, {"prompt": {}, "prefix": {"is_prefix": True}})


def _variants(targets: int | None, options):
  """Our own steps alone; batch 8, texts of 128, 10 vectors."""
  shape = 8, 128, 10, targets or 127
  return {
      f"ours, {name}": (
          functools.partial(_our_causal, shape, "float32", **own),
          functools.partial(our_matmul, "float32"))
      for name, own in options.items()}


SETTINGS = {
    "t5": t5,
    "causal_200": functools.partial(causal, 4, 210, 200),
    "causal_20": functools.partial(causal, 8, 128, 20),
    "lopa": lopa,
    "prefix": prefix,
    "save": saving,
}


def contenders(makers):
  """Contenders by name, of makers by "ours" or another library's name."""
  return {
      f"{who}, {dtype}": (
          functools.partial(make, dtype),
          functools.partial(
              our_matmul if who == "ours" else torch_matmul, dtype))
      for dtype in DTYPES for who, make in makers.items()}


def our_matmul(dtype: str, size: int):
  """A product of two [size, size] in JAX."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(x, x))


def torch_matmul(dtype: str, size: int):
  """A product of two [size, size] in torch."""
  import torch

  x = torch.ones(size, size, dtype=getattr(torch, dtype))
  return lambda: x @ x


def _random_ids(*shape, vocab=32000):
  import numpy as np

  return np.random.default_rng(0).integers(3, vocab, shape, np.int32)


# ------------------------------------------------------------------- T5 small

_T5 = dict(batch=8, inputs=128, targets=8, prompt=100, vocab=32128)


def _our_t5(dtype: str):
  import jax.numpy as jnp

  from prompt_tuning import prompts
  from prompt_tuning.data import features
  from prompt_tuning.models import encoder_decoder
  from prompt_tuning.models import t5 as t5_model
  from prompt_tuning.train import adafactor
  from prompt_tuning.train import prompts as train_prompts

  config = t5_model.Config(
      _T5["vocab"], embed_dim=512, num_heads=6, head_dim=64, mlp_dim=1024,
      num_encoder_layers=8, num_decoder_layers=8, dtype=jnp.dtype(dtype))
  model = encoder_decoder.EncoderDecoderModel(
      t5_model.EncoderDecoder(config, lambda: train_prompts.Prompt(
          prompts.Prompt(_T5["prompt"]))), None, None)
  batch = features.EncoderDecoder().padded(
      list(_random_ids(_T5["batch"], _T5["inputs"])),
      list(_random_ids(_T5["batch"], _T5["targets"])),
      _T5["inputs"], _T5["targets"])
  optimizer = adafactor.Adafactor(
      LEARNING_RATE, multiply_by_parameter_scale=False,
      weight_decay_rate=1e-5)
  return _our_step(model, optimizer, batch, dtype)


def _random_params(model, dtype: str):
  import flax.traverse_util
  import jax.numpy as jnp
  import numpy as np

  rng = np.random.default_rng(0)
  shapes, _ = model.abstract()
  return flax.traverse_util.path_aware_map(
      lambda path, s: jnp.asarray(
          0.05 * rng.standard_normal(s.shape, np.float32),
          jnp.float32 if {"prompt", "prefix"} & set(path) else dtype), shapes)


def _our_step(model, optimizer, batch, dtype):
  """A training step of the engine, as `train.loop` compiles it."""
  import jax
  import jax.numpy as jnp

  from prompt_tuning.train import state as state_lib
  from prompt_tuning.train import step as step_lib

  trainable, frozen = state_lib.split(
      _random_params(model, dtype), [".*/(prompt|prefix)/.*"])
  state = step_lib.TrainState(
      jnp.int32(0), trainable, optimizer.init(trainable))
  step = jax.jit(
      step_lib.make_train_step(model, optimizer), donate_argnums=0,
      compiler_options=step_lib.compiler_options())
  key = jax.random.PRNGKey(0)

  def run():
    nonlocal state
    state, metrics = step(state, frozen, batch, key)
    jax.block_until_ready((state, metrics))

  return run


def _peft_t5(dtype: str):
  import torch
  import transformers

  prepare_torch()
  base = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=_T5["vocab"], d_model=512, d_kv=64, d_ff=1024, num_layers=8,
      num_heads=6, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
      dropout_rate=0.0, decoder_start_token_id=0)).to(getattr(torch, dtype))
  inputs, targets = (
      torch.from_numpy(_random_ids(_T5["batch"], _T5[name])).long()
      for name in ("inputs", "targets"))
  return _peft_step(
      base, "SEQ_2_SEQ_LM", _T5["prompt"], inputs, targets)


def prepare_torch():
  """All cores, one seed, no denormals."""
  import torch

  torch.set_flush_denormal(True)
  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)


def _peft_step(base, task_type, prompt, inputs, labels):
  import peft
  import torch

  model = peft.get_peft_model(base, peft.PromptTuningConfig(
      task_type=task_type, num_virtual_tokens=prompt))
  model.train()
  optimizer = torch.optim.AdamW(
      [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
  mask = torch.ones_like(inputs)

  def run():
    optimizer.zero_grad()
    model(input_ids=inputs, attention_mask=mask, labels=labels
          ).loss.backward()
    optimizer.step()

  return run


# --------------------------------------------------------------- SmolLM2-135M

_SMOLLM2_VOCAB = 49152


def _our_smollm2(
    dtype: str, prompt: int | None, shared: bool = True,
    lopa_rank: int | None = None, is_prefix: bool = False,
):
  import jax.numpy as jnp

  from prompt_tuning import prompts
  from prompt_tuning.methods import low_rank
  from prompt_tuning.methods import prefix as prefix_tuning
  from prompt_tuning.models import causal_lm
  from prompt_tuning.train import prompts as train_prompts

  def door():
    table = prompts.Prompt(prompt)
    return train_prompts.Prompt(
        low_rank.LowRankPrompt(table, lopa_rank) if lopa_rank else table)

  config = causal_lm.Config(
      _SMOLLM2_VOCAB, embed_dim=576, num_layers=30, num_heads=9, head_dim=64,
      mlp_dim=1536, num_kv_heads=3, dtype=jnp.dtype(dtype))
  if is_prefix:
    return causal_lm.CausalLM(
        config, prefix_factory=lambda: prefix_tuning.ProjectedPrefix(
            prompt, hidden_dim=512, dtype=jnp.dtype(dtype)))
  return causal_lm.CausalLM(
      config, door if prompt else None, share_prompt=shared)


_ENCODING = 1024  # CodeSage small's, of which LOPA makes its prompts


def _our_causal(shape, dtype: str, **options):
  import types

  import numpy as np
  import optax

  from prompt_tuning.data import features
  from prompt_tuning.models import decoder_only

  batch, text, prompt, targets = shape
  model = decoder_only.DecoderOnlyModel(
      _our_smollm2(dtype, prompt, **options), None,
      instance_encoder=types.SimpleNamespace(width=_ENCODING)
      if "lopa_rank" in options else None)
  ids = _random_ids(batch, text)
  inputs = text - targets
  arrays = features.DecoderOnly().padded(
      list(ids[:, :inputs]), list(ids[:, inputs:]), inputs, targets)
  if model.instance_encoder:
    arrays["instance_encodings"] = np.random.default_rng(1).normal(
        size=(batch, _ENCODING)).astype(np.float32)
  return _our_step(model, optax.adamw(LEARNING_RATE), arrays, dtype)


def _hf_smollm2(dtype: str):
  import torch
  import transformers

  prepare_torch()
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=_SMOLLM2_VOCAB, hidden_size=576, num_hidden_layers=30,
      num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
      tie_word_embeddings=True)).to(getattr(torch, dtype))


def _peft_causal(shape, dtype: str):
  import torch

  batch, text, prompt, targets = shape
  ids = torch.from_numpy(_random_ids(batch, text)).long()
  labels = ids.clone()
  labels[:, :text - targets] = -100
  return _peft_step(_hf_smollm2(dtype), "CAUSAL_LM", prompt, ids, labels)


# -------------------------------------------------------------------- a save


def _our_save():
  """A save of a prompt of [100, 768] under Adafactor, as `train.loop` does."""
  import tempfile
  import time
  import types

  import jax.numpy as jnp

  from prompt_tuning.checkpoints import runs
  from prompt_tuning.models import t5
  from prompt_tuning.train import adafactor, exporting, settings
  from prompt_tuning.train import step as step_lib

  trainable = {"encoder": {"prompt": {"prompt": {
      "prompt": jnp.ones((100, 768))}}}}
  optimizer = adafactor.Adafactor(
      LEARNING_RATE, multiply_by_parameter_scale=False)
  model = types.SimpleNamespace(delta=None, module=t5.EncoderDecoder(t5.Config(
      vocab_size=32_128, embed_dim=768, num_heads=12, head_dim=64,
      mlp_dim=2048, num_encoder_layers=12, num_decoder_layers=12)))
  weights = types.SimpleNamespace(
      source=None, base_name="base", base_fingerprint="0" * 64)
  dataset = settings.DatasetConfig(
      "task", {"inputs": 128, "targets": 8}, split="train", batch_size=8)
  folder = tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-")
  checkpoints = runs.RunCheckpoints(folder.name).__enter__()
  number = 0

  def run():
    nonlocal number
    number += 1
    state = step_lib.TrainState(
        jnp.int32(number), trainable, optimizer.init(trainable))
    start = time.perf_counter()
    checkpoints.save(number, state, {"data": {}}, exporting.writer(
        folder.name, number, model, state.trainable, weights, dataset, {}, {}))
    seconds = time.perf_counter() - start
    checkpoints.wait()
    return {"seconds": seconds}

  return run
