"""Training steps per second and peak memory, against Hugging Face PEFT.

    python -m prompt_tuning.scripts.benchmark_training --steps 8

T5 1.1 small with random weights, batch 8, inputs 128, targets 8, prompt 100.
Each contender is a process of its own; they take turns, one step each, so a
machine whose speed drifts slows all of them alike and the ratios hold. PEFT
runs at its fair best: without dropout, denormals flushed to zero (its float32
T5 is many times slower with them), all cores. Without torch, transformers and
peft only our own rows are measured.
"""

import argparse
import datetime
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

BATCH, INPUTS, TARGETS, PROMPT = 8, 128, 8, 100
VOCAB, LEARNING_RATE = 32128, 0.3


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--steps", type=int, default=8, help="timed steps each")
  parser.add_argument("--contender", choices=list(CONTENDERS), default=None,
                      help="run as one contender (used by this script itself)")
  flags = parser.parse_args(arguments)
  if flags.contender:
    _serve(CONTENDERS[flags.contender])
    return
  names = [n for n in CONTENDERS if "PEFT" not in n or _has_peft()]
  _print_table(_race(names, flags.steps))


def _has_peft() -> bool:
  return all(importlib.util.find_spec(m)
             for m in ("torch", "transformers", "peft"))


def _race(names, steps):
  """{contender: (seconds of each step, first step's, peak MiB)}."""
  workers = {
      name: subprocess.Popen(
          [sys.executable, "-m", "prompt_tuning.scripts.benchmark_training",
           "--contender", name], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
      for name in names}

  def ask(name) -> list[float]:
    workers[name].stdin.write("step\n")
    workers[name].stdin.flush()
    return [float(x) for x in workers[name].stdout.readline().split()]

  first = {name: ask(name)[0] for name in names}
  for name in names:
    ask(name)  # one more to warm up
  times = {name: [] for name in names}
  peaks = {}
  for _ in range(steps):
    for name in names:
      seconds, peaks[name] = ask(name)
      times[name].append(seconds)
  for worker in workers.values():
    worker.stdin.close()
    worker.wait()
  return {name: (times[name], first[name], peaks[name]) for name in names}


def _serve(make_step):
  """Runs one step for each line on stdin; prints seconds and peak MiB.

  The first step's seconds include imports, building and compiling.
  """
  step = None
  while sys.stdin.readline():
    start = time.perf_counter()
    if step is None:
      step = make_step()
    step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, peak, flush=True)


def _random_batch():
  import numpy as np

  rng = np.random.default_rng(0)
  return (rng.integers(2, VOCAB, (BATCH, INPUTS), np.int32),
          rng.integers(2, VOCAB, (BATCH, TARGETS), np.int32))


def _ours(dtype: str):
  import flax.traverse_util
  import jax
  import jax.numpy as jnp
  import numpy as np

  from prompt_tuning import prompts
  from prompt_tuning.data import features
  from prompt_tuning.models import encoder_decoder, t5
  from prompt_tuning.train import adafactor
  from prompt_tuning.train import prompts as train_prompts
  from prompt_tuning.train import state as state_lib
  from prompt_tuning.train import step as step_lib

  config = t5.Config(
      VOCAB, embed_dim=512, num_heads=6, head_dim=64, mlp_dim=1024,
      num_encoder_layers=8, num_decoder_layers=8, dtype=jnp.dtype(dtype))
  model = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config, lambda: train_prompts.Prompt(
          prompts.Prompt(PROMPT))), None, None)
  rng = np.random.default_rng(0)
  shapes, _ = model.abstract()
  params = flax.traverse_util.path_aware_map(
      lambda path, s: jnp.asarray(
          0.05 * rng.standard_normal(s.shape, np.float32),
          jnp.float32 if path[-1] == "prompt" else dtype), shapes)
  trainable, frozen = state_lib.split(params, [".*/prompt/.*"])
  del params
  optimizer = adafactor.Adafactor(
      LEARNING_RATE, multiply_by_parameter_scale=False,
      weight_decay_rate=1e-5)
  inputs, targets = _random_batch()
  batch = features.model_features(
      list(inputs), list(targets), INPUTS, TARGETS)
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


def _peft(dtype: str):
  import peft
  import torch
  import transformers

  torch.set_flush_denormal(True)
  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  base = transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=VOCAB, d_model=512, d_kv=64, d_ff=1024, num_layers=8,
      num_heads=6, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
      dropout_rate=0.0, decoder_start_token_id=0)).to(getattr(torch, dtype))
  model = peft.get_peft_model(base, peft.PromptTuningConfig(
      task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PROMPT))
  model.train()
  optimizer = torch.optim.AdamW(
      [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
  inputs, targets = (torch.from_numpy(x).long() for x in _random_batch())
  mask = torch.ones_like(inputs)

  def run():
    optimizer.zero_grad()
    model(input_ids=inputs, attention_mask=mask, labels=targets
          ).loss.backward()
    optimizer.step()

  return run


CONTENDERS = {
    "ours, float32": lambda: _ours("float32"),
    "PEFT, float32": lambda: _peft("float32"),
    "ours, bfloat16": lambda: _ours("bfloat16"),
    "PEFT, bfloat16": lambda: _peft("bfloat16"),
}


def _print_table(results):
  print(f"{platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {datetime.date.today()}")
  print(f"{'':18}{'s/step':>9}{'steps/s':>9}{'peak MiB':>10}"
        f"{'first step s':>14}{'speed / PEFT float32':>22}")
  reference = results.get("PEFT, float32")
  for name, (times, first, peak) in results.items():
    median = statistics.median(times)
    ratio = "" if reference is None else (
        f"{statistics.median(r / t for r, t in zip(reference[0], times)):.2f}")
    print(f"{name:18}{median:9.3f}{1 / median:9.2f}{peak:10.0f}"
          f"{first:14.1f}{ratio:>22}")


if __name__ == "__main__":
  main()
