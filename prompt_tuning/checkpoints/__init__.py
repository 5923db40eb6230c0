"""Weights on disk: readers of base checkpoints, and a run's own checkpoints.

Each reader of base weights (`t5x`, `hugging_face`, `gguf`) is a `BaseWeights`:
it lists arrays under the model's own paths and gives each as a stream of
blocks, so that no reader ever holds more than a few megabytes beside what is
loaded.
"""

import abc
from collections.abc import Iterator
import contextlib
import struct
import zlib

import jax
import numpy as np

from prompt_tuning import errors

# What a reader may hold at a time. Larger blocks were not faster.
BLOCK_BYTES = 4 << 20

Index = tuple[slice, ...]
Block = tuple[Index, np.ndarray]


class BaseWeights(abc.ABC):
  """One checkpoint of base weights, read array by array.

  Attributes:
    path: where it is, as the user gave it.
    arrays: shape and stored dtype of each array, by parameter path such as
      `encoder/layers_0/attention/query/kernel`.
    family: the model's, by Hugging Face's name: "t5", "llama", ….
    unknown: names in the files that are no parameter of that family.
  """

  path: str
  family: str
  arrays: dict[str, jax.ShapeDtypeStruct]
  unknown: tuple[str, ...] = ()

  @abc.abstractmethod
  def blocks(self, path: str) -> Iterator[Block]:
    """Cuts one array into blocks that together cover it exactly once.

    Args:
      path: a key of `arrays`.

    Yields:
      (index, block): one slice with start and stop per axis, and the values
      there in the stored dtype.

    Raises:
      UserError: if a file is missing, truncated or damaged.
    """

  def read_into(self, path: str, out: np.ndarray):
    """Reads one array into `out`, of the same shape and any dtype."""
    for index, block in self.blocks(path):
      out[index] = block


@contextlib.contextmanager
def reading(file: str, *kinds: type[Exception]):
  """Turns what bytes that lie can cause into a `UserError` naming the file.

  Args:
    file: what is being read.
    *kinds: exceptions that the reading library adds to the usual ones.
  """
  try:
    yield
  except errors.UserError:
    raise
  except FileNotFoundError as error:
    raise errors.UserError(
        f"{file} is missing: copy the whole checkpoint again.") from error
  except PermissionError as error:
    raise errors.UserError(
        f"{file} may not be read by this user: change its permissions."
    ) from error
  except (EOFError, OSError, ValueError, LookupError, TypeError,
          AttributeError, ArithmeticError, MemoryError, RecursionError,
          struct.error, zlib.error, *kinds) as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise errors.UserError(
        f"{file} is damaged or truncated ({reason[:200]}): copy the "
        "checkpoint again.") from error


def read_exactly(stream, count: int) -> bytes:
  """The next `count` bytes of `stream`; `EOFError` if there are fewer."""
  data = stream.read(count)
  if len(data) < count:
    raise EOFError(f"it ends {count - len(data)} bytes early")
  return data


def names(listed: list[str], most: int = 3) -> str:
  """The first `most` of some names, for a message."""
  more = len(listed) - most
  return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
