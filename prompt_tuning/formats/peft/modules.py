"""A model's dense layers under Hugging Face's names, which PEFT's keys carry.

They follow from the weight map of the model's family (`checkpoints.families`):
where a kernel is stored says which module it belongs to, and which of that
module's outputs are ours where several of ours share it (GPT-2's `c_attn` makes
queries, keys and values).
"""

from collections.abc import Iterable, Mapping
import dataclasses

import numpy as np

from prompt_tuning.checkpoints.families import weights


@dataclasses.dataclass(frozen=True)
class Module:
  """One dense module there, and the layers that it is here.

  Attributes:
    name: such as `transformer.h.0.attn.c_attn`.
    inputs: width.
    outputs: width.
    parts: by our path (`decoder/layers_0/attention/query`), which of the
      outputs are that layer's, in our order.
    fan_in_fan_out: whether the kernel is stored as [in, out] there.
  """

  name: str
  inputs: int
  outputs: int
  parts: Mapping[str, np.ndarray]
  fan_in_fan_out: bool = False

  @property
  def order(self) -> np.ndarray:
    """All of our outputs, one layer after the other: [sum of widths]."""
    return np.concatenate(list(self.parts.values()))


def of_pieces(pieces: weights.Map) -> dict[str, Module]:
  """The modules of a family's weight map, by name."""
  found = {}
  for path, piece in pieces.items():
    if not path.endswith("/kernel"):
      continue
    name = piece.names[0].removesuffix(".weight")
    # A `Linear` is stored as [out, in], GPT-2's `Conv1D` as [in, out].
    axis = 0 if piece.transposed else 1
    module = found.setdefault(name, Module(
        name, piece.stored[1 - axis], piece.stored[axis], {},
        not piece.transposed))
    module.parts[path.removesuffix("/kernel")] = _outputs(piece, axis)
  return found


def _outputs(piece: weights.Piece, axis: int) -> np.ndarray:
  every = np.arange(piece.stored[axis])
  if piece.part is None:
    return every
  start, size = piece.part.start, piece.part.size
  return every.reshape(piece.part.count, -1)[:, start:start + size].ravel()


def targets(chosen: Iterable[str], every: Iterable[str]) -> list[str]:
  """`target_modules` that PEFT matches with the chosen modules alone.

  PEFT takes a module if its name is a target or ends in one after a dot.

  Args:
    chosen: names of modules.
    every: names of all of the model's modules.

  Returns:
    The shortest endings that fit, such as `c_attn`; whole names where the
    chosen are not all of the modules with any ending.
  """
  chosen = set(chosen)
  found = set()
  for name in chosen:
    words = name.split(".")
    for count in range(1, len(words) + 1):
      ending = ".".join(words[-count:])
      if all(other in chosen for other in every if ends_in(other, ending)):
        found.add(ending)
        break
  return sorted(found)


def ends_in(name: str, ending: str) -> bool:
  """Whether PEFT takes the module `name` for the target `ending`."""
  return name == ending or name.endswith(f".{ending}")
