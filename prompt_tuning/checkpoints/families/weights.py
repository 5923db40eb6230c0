"""Where our parameters lie in Hugging Face's tensors: the words of a map.

A family's map gives a `Piece` for each of our paths. A piece is a whole tensor,
its transpose, or rows or columns of a tensor that several of ours share; it is
read and written by `hugging_face`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
  """`size` of each of `count` equal stretches of an axis, from `start` on.

  Queries, keys and values in one tensor are three parts: one stretch each
  where they follow each other, and as many as there are heads (or groups of
  heads) where they alternate.
  """

  start: int
  size: int
  count: int = 1
  axis: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
  """One of our parameters in one stored tensor.

  Attributes:
    names: of the tensor; the first is written, the others are copies that
      some writers kept instead.
    stored: shape of the whole tensor.
    transposed: whether ours is the transpose (a PyTorch `Linear` is
      [out, in]; our kernels are [in, out]).
    part: what of the tensor is ours; all of it if None.
    zero_if_absent: whether a file may lack the tensor, which is 0 then.
  """

  names: tuple[str, ...]
  stored: tuple[int, ...]
  transposed: bool = False
  part: Part | None = None
  zero_if_absent: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of our parameter."""
    shape = list(self.stored)
    if self.part:
      shape[self.part.axis] = self.part.size * self.part.count
    return tuple(shape[::-1] if self.transposed else shape)

  @property
  def stretch(self) -> int:
    """The length of one stretch along the part's axis."""
    return self.stored[self.part.axis] // self.part.count

  def put(self, ours: np.ndarray, stored: np.ndarray):
    """Writes our parameter into its place in the stored tensor."""
    ours = ours.T if self.transposed else ours
    if not self.part:
      stored[...] = ours
      return
    part, axis = self.part, self.part.axis
    before, after = self.stored[:axis], self.stored[axis + 1:]
    view = stored.reshape(*before, part.count, self.stretch, *after)
    view = np.moveaxis(view, axis + 1, 0)[part.start:part.start + part.size]
    ours = ours.reshape(*before, part.count, part.size, *after)
    view[...] = np.moveaxis(ours, axis + 1, 0)


Map = dict[str, Piece]


def whole(path: str, *names: str, stored: tuple[int, ...]) -> Map:
  """A parameter that is a tensor of its own, in the same orientation."""
  return {path: Piece(names, stored)}


def norm(path: str, name: str, width: int, bias: bool = False) -> Map:
  """A norm's scale, and its bias if it has one; ours stand under `path`."""
  found = whole(f"{path}/scale", f"{name}.weight", stored=(width,))
  if bias:
    found |= whole(f"{path}/bias", f"{name}.bias", stored=(width,))
  return found


def linear(
    path: str, name: str, inputs: int, outputs: int, bias: bool = False,
    part: Part | None = None,
) -> Map:
  """A `Linear`: [outputs, inputs] there, a kernel [in, out] of ours.

  Args:
    path: ours, without `/kernel`.
    name: theirs, without `.weight`.
    inputs: columns of the stored tensor.
    outputs: rows of the stored tensor, all that share it together.
    bias: whether there is one.
    part: which of the rows are this parameter's.

  Returns:
    The pieces.
  """
  found = {f"{path}/kernel": Piece(
      (f"{name}.weight",), (outputs, inputs), True, part)}
  if bias:
    found[f"{path}/bias"] = Piece((f"{name}.bias",), (outputs,), False, part)
  return found


def logits(config, bias: bool = False, copies: tuple[str, ...] = ()) -> Map:
  """The untied logits' layer; none if the embedding table makes the logits.

  Args:
    config: a `causal_lm.Config`.
    bias: whether there is one.
    copies: other names under which the table may stand.
  """
  if config.tie_logits:
    return {}
  vocab, width = config.vocab_size, config.embed_dim
  found = linear("decoder/logits_dense", "lm_head", width, vocab, bias)
  kernel = found["decoder/logits_dense/kernel"]
  found["decoder/logits_dense/kernel"] = dataclasses.replace(
      kernel, names=(*kernel.names, *copies))
  return found


def table(config, name: str) -> Map:
  """The embedding table; where it is tied, `lm_head.weight` is a copy."""
  names = (name, "lm_head.weight") if config.tie_logits else (name,)
  return whole(
      "token_embedder/embedding", *names,
      stored=(config.vocab_size, config.embed_dim))
