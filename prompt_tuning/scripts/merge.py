"""Works a LoRA or (IA)3 adapter into its base model's weights.

    python -m prompt_tuning.scripts.merge --base gpt2 --adapter runs/adapter \\
        --output gpt2_merged

The result is a Hugging Face directory that gives the adapter's outputs and
knows nothing of it: as fast as the base, and for any library.
"""

import argparse
import os
import sys

import flax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import hugging_face
from prompt_tuning.formats import peft
from prompt_tuning.train import state as state_lib


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.merge",
      description=__doc__.split("\n")[0])
  parser.add_argument(
      "--base", required=True,
      help="the Hugging Face directory or GGUF file that was adapted")
  parser.add_argument(
      "--adapter", required=True, help="folder with adapter_config.json")
  parser.add_argument("--output", required=True, help="folder to make")
  flags = parser.parse_args(arguments)
  with errors.reported():
    changed = merge(flags.base, flags.adapter, flags.output)
    print(f"{changed} kernels changed; the merged model: {flags.output}")


def merge(
    base: str | os.PathLike, adapter: str | os.PathLike,
    output: str | os.PathLike,
) -> int:
  """Writes the merged model.

  Sums are taken in float32; the file has the base's dtype, float32 for a
  float16 one, so that in bfloat16 a delta is rounded with its kernel.

  Args:
    base: see `checkpoints.base.open_base`; it must state its sizes.
    adapter: a PEFT directory of the type LORA or IA3.
    output: folder for config.json, model.safetensors and the base's tokenizer.

  Returns:
    How many kernels the adapter changes.

  Raises:
    UserError: if a file is bad, the adapter is of another model or type, or
      the output is the base.
  """
  if os.path.realpath(base) == os.path.realpath(output):
    raise errors.UserError(
        f"--output {output} is the base itself, which would be lost: give "
        "another folder.")
  weights = base_lib.open_base(base)
  model = peft.Base.of(weights)
  read = peft.load(adapter)
  delta = peft.delta(read, model)
  if delta is None:
    raise errors.UserError(
        f"{adapter} is of the type {read.type}, which adds positions to the "
        "text and changes no weights: only LORA and IA3 can be merged.")
  change = peft.to_params(read, model)
  merged = delta.merge(state_lib.merge(change, _all_arrays(weights)))
  hugging_face.save(
      output, merged, weights.config, _dtype_to_write(weights),
      family=weights.family, token_ids=hugging_face.token_ids(base))
  hugging_face.copy_companions(base, output)
  return len({path.rsplit("/", 2)[0] for path in state_lib.flatten(change)})


def _all_arrays(weights: checkpoints.BaseWeights) -> dict:
  """The whole model on the host, in the dtype of the file."""
  arrays = {}
  for name, spec in weights.arrays.items():
    arrays[name] = np.empty(spec.shape, spec.dtype)
    weights.read_into(name, arrays[name])
  return flax.traverse_util.unflatten_dict(arrays, sep="/")


def _dtype_to_write(weights: checkpoints.BaseWeights):
  dtypes = {np.dtype(spec.dtype) for spec in weights.arrays.values()}
  return jnp.bfloat16 if dtypes == {np.dtype(jnp.bfloat16)} else jnp.float32


if __name__ == "__main__":
  sys.exit(main())
