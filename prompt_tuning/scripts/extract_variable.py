"""Takes one array out of a checkpoint, as a `.npy` file.

    python -m prompt_tuning.scripts.extract_variable \\
        --checkpoint_dir t5_1_1_base/checkpoint_1000000 \\
        --variable_path token_embedder/embedding \\
        --output_path embeddings.npy

The checkpoint is T5X's (its own or orbax's layout), a Hugging Face directory or
a GGUF file; names are T5X's for all of them.
"""

import argparse
import os
import sys

import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors, formats
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import npy

# numpy has no name for bfloat16: its values are rounded, and the file holds
# them in float32.
DTYPES = ("float32", "bfloat16")


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.extract_variable",
      description=__doc__.split("\n")[0])
  parser.add_argument("--checkpoint_dir", required=True)
  parser.add_argument(
      "--variable_path", required=True,
      help="such as token_embedder/embedding; target/ may lead")
  parser.add_argument(
      "--output_path", required=True, help="the .npy file to write")
  parser.add_argument(
      "--restore_dtype", choices=DTYPES, default="float32",
      help="what to round to; the file is in float32 either way")
  flags = parser.parse_args(arguments)
  with errors.reported():
    shape = extract(
        flags.checkpoint_dir, flags.variable_path, flags.output_path,
        flags.restore_dtype)
    print(f"{flags.output_path}: {' x '.join(map(str, shape)) or 'a number'}")


def extract(
    checkpoint: str | os.PathLike, variable: str, output: str | os.PathLike,
    dtype: str = "float32",
) -> tuple[int, ...]:
  """Reads an array and writes it.

  Args:
    checkpoint: see `checkpoints.base.open_base`.
    variable: see `checkpoints.base.read_variable`.
    output: the file; its folder is made.
    dtype: one of `DTYPES`.

  Returns:
    The array's shape.

  Raises:
    UserError: if it cannot be read or written, or has NaN or infinite values.
  """
  values = base_lib.read_variable(checkpoint, variable, jnp.dtype(dtype))
  save(output, values)
  return values.shape


def save(path: str | os.PathLike, values: np.ndarray) -> None:
  """Writes a `.npy` file, and the folder for it."""
  try:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  except OSError as error:
    raise errors.UserError(
        f"cannot write {path}: {formats.why_not_written(error)}") from error
  npy.write(path, values)


if __name__ == "__main__":
  sys.exit(main())
