"""Training steps per second and peak memory, against Hugging Face PEFT.

    python -m prompt_tuning.scripts.benchmark_training --steps 8

T5 1.1 small with random weights, batch 8, inputs 128, targets 8, prompt 100.
Each contender is a process of its own; they take turns, one step each, so a
machine whose speed drifts slows all of them alike and the ratios hold. PEFT
runs at its fair best: without dropout, denormals flushed to zero (its float32
T5 is many times slower with them), all cores. Without torch, transformers and
peft only our own rows are measured.

The column `matmul` is each library's speed at one large product in the same
dtype. It bounds what a step can be: where XLA's matmul is twice torch's (CPUs
with full-rate AVX-512) the ratio of the steps can be two, elsewhere not.
"""

import argparse
import datetime
import functools
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
    _serve(*CONTENDERS[flags.contender])
    return
  names = [n for n in CONTENDERS if "PEFT" not in n or _has_peft()]
  _print_table(_race(names, flags.steps))


def _has_peft() -> bool:
  return all(importlib.util.find_spec(m)
             for m in ("torch", "transformers", "peft"))


def _race(names, steps):
  """{contender: (seconds of each step, first step's, peak MiB, GFLOP/s)}."""
  workers = {
      name: subprocess.Popen(
          [sys.executable, "-m", "prompt_tuning.scripts.benchmark_training",
           "--contender", name], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
      for name in names}

  def ask(name, what="step") -> list[float]:
    workers[name].stdin.write(what + "\n")
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
  matmul = {name: ask(name, "matmul")[0] for name in names}
  for worker in workers.values():
    worker.stdin.close()
    worker.wait()
  return {name: (times[name], first[name], peaks[name], matmul[name])
          for name in names}


def _serve(make_step, matmul):
  """Answers each line on stdin: `step` with seconds and peak MiB, or `matmul`.

  The first step's seconds include imports, building and compiling.
  """
  step = None
  while line := sys.stdin.readline():
    if line == "matmul\n":
      print(_matmul_speed(matmul), flush=True)
      continue
    start = time.perf_counter()
    if step is None:
      step = make_step()
    step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, peak, flush=True)


def _matmul_speed(make_matmul) -> float:
  """GFLOP/s of the best of ten products of 2048 x 2048 matrices."""
  matmul = make_matmul(2048)
  seconds = []
  for _ in range(11):
    start = time.perf_counter()
    matmul()
    seconds.append(time.perf_counter() - start)
  return 2 * 2048**3 / min(seconds) / 1e9


def _our_matmul(dtype: str, size: int):
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(x, x))


def _torch_matmul(dtype: str, size: int):
  import torch

  x = torch.ones(size, size, dtype=getattr(torch, dtype))
  return lambda: x @ x


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
    f"{who}, {dtype}": tuple(functools.partial(f, dtype) for f in functions)
    for dtype in ("float32", "bfloat16")
    for who, functions in (("ours", (_ours, _our_matmul)),
                           ("PEFT", (_peft, _torch_matmul)))
}


def _print_table(results):
  print(f"{platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {datetime.date.today()}")
  print(f"{'':18}{'s/step':>9}{'steps/s':>9}{'peak MiB':>10}"
        f"{'first step s':>14}{'matmul GFLOP/s':>16}"
        f"{'speed / PEFT float32':>22}")
  reference = results.get("PEFT, float32")
  for name, (times, first, peak, matmul) in results.items():
    median = statistics.median(times)
    ratio = "" if reference is None else (
        f"{statistics.median(r / t for r, t in zip(reference[0], times)):.2f}")
    print(f"{name:18}{median:9.3f}{1 / median:9.2f}{peak:10.0f}"
          f"{first:14.1f}{matmul:16.0f}{ratio:>22}")


if __name__ == "__main__":
  main()
