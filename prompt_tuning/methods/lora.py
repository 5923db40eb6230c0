"""LoRA: a low-rank matrix is added to chosen kernels (Hu et al. 2021).

    y = x W + dropout(x) a b alpha / R        a [in, R], b [R, out]

(arXiv 2106.09685, 4.1.) b starts as zeros, so training starts from the base;
a as in Hugging Face PEFT, uniform in [-1/sqrt(in), 1/sqrt(in)].
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors
from prompt_tuning.methods import interception
from prompt_tuning.models import layers

Array = jax.Array

SCOPE = "lora"

# Variance 1 / (3 in): bound 1 / sqrt(in), torch's kaiming_uniform(a=sqrt(5)).
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def low_rank(x: Array, a: Array, b: Array, scale: float) -> Array:
  """x [..., in], a [in, R], b [R, out] -> [..., out]."""
  return (x @ a) @ b * scale


def added(kernel: Array, a: Array, b: Array, scale: float) -> Array:
  """The kernel with its delta: [..., in, out], summed in float32."""
  delta = a.astype(jnp.float32) @ b.astype(jnp.float32) * scale
  return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


class Down(nn.Module):
  """The trained a [in, R], float32."""

  rank: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, width: int) -> Array:
    return partitioning.param_with_axes(
        "a", _uniform, (width, self.rank), jnp.float32,
        axes=(self.axes[0], "lora_rank"))


class Up(nn.Module):
  """The trained b [R, out], float32."""

  rank: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, features: int) -> Array:
    return partitioning.param_with_axes(
        "b", nn.initializers.zeros, (self.rank, features), jnp.float32,
        axes=("lora_rank", self.axes[1]))


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank deltas of the Dense modules whose path matches.

  Cross-attention of few targets (`layers.attend_to_memory`) has no projection
  of the memory that a delta could be added to, so there W + a b alpha / R is
  the kernel: the same function, at the price of one gradient [in, out] a
  kernel, as much work as the forward pass of these few targets. In bfloat16
  that sum is rounded as merged weights are; and dropout, which is to hit the
  memory, hits its width alone there, alike for all positions and examples.

  PEFT's `use_rslora` (alpha / sqrt(R)) is `alpha * sqrt(R)` here.

  Attributes:
    rank: R.
    alpha: the delta is multiplied by alpha / R.
    targets: patterns of whole module paths, without the layer's `kernel`:
      `.*attention/(query|value)`. Unrolled layers are `…/layers_0/…`, scanned
      ones `…/layers/…`.
    dropout: of the delta's input, in training steps with USE_DROPOUT.
    fused: names of targets beside each other, such as query, key and value,
      that have one a together: what a delta of GPT-2's `c_attn` is, where the
      three are one projection. The first one, which the model must also use
      first, holds it.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: Sequence[str] = (r".*attention/(query|value)",)
  dropout: float = 0.0
  fused: Sequence[str] = ()

  def __post_init__(self):
    interception.check_patterns("Lora.targets", self.targets)
    interception.check_patterns("Lora.fused", self.fused)
    if type(self.rank) is not int or self.rank < 1:
      raise errors.UserError(
          f"LORA_RANK (Lora.rank) is {self.rank!r}: it must be a whole number "
          "from 1 up.")
    if not 0.0 <= self.dropout < 1.0:
      raise errors.UserError(
          f"LORA_DROPOUT (Lora.dropout) is {self.dropout!r}: it must be from "
          "0 up and below 1.")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  @property
  def patterns(self) -> Sequence[str]:
    """See `interception.Delta`."""
    return self.targets

  def interceptor(self) -> Callable[..., Any]:
    """See `interception.Delta`."""
    return interception.interceptor(
        self.targets, self._call, self._kernel)

  def merge(self, params: Mapping[str, Any]) -> dict:
    """See `interception.Delta`."""
    return merge(self.unshared(params), self.scale)

  def unshared(self, params: Mapping[str, Any]) -> dict:
    """The tree with the a of `fused` beside each b that it belongs to."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    for path in [p for p in flat if p.endswith(f"/{SCOPE}/b")]:
      dense = path.removesuffix(f"/{SCOPE}/b")
      owner = self._owner(dense)
      flat[f"{dense}/{SCOPE}/a"] = flat[f"{owner}/{SCOPE}/a"]
    return traverse_util.unflatten_dict(flat, sep="/")

  def _owner(self, path: str) -> str:
    """The path of the Dense that holds the a of the one at `path`."""
    parent, _, name = path.rpartition("/")
    if name in self.fused:
      for other in self.fused:
        if interception.matches(self.targets, f"{parent}/{other}"):
          return f"{parent}/{other}"
    return path

  def _call(self, plain, module: layers.Dense, x: Array) -> Array:
    a, b = self._matrices(module, x.shape[-1])
    dtype = module.dtype
    dropped = self._dropped(module, x.astype(dtype))
    return plain(x) + low_rank(
        dropped, a.astype(dtype), b.astype(dtype), self.scale)

  def _kernel(self, kernel: Array, module: layers.Dense) -> Array:
    a, b = self._matrices(module, kernel.shape[0])
    kept = self._dropped(module, jnp.ones((len(a), 1)))
    return added(kernel, kept * a, b, self.scale)

  def _matrices(self, module, width: int) -> tuple[Array, Array]:
    a = Down(self.rank, module.axes, parent=self._scope_of_a(module))(width)
    b = Up(self.rank, module.axes, parent=interception.inside(
        module, SCOPE))(module.features)
    return a, b

  def _scope_of_a(self, module):
    path = "/".join(module.path)
    owner = self._owner(path)
    if owner == path:
      return interception.inside(module, SCOPE)
    return interception.beside(module, owner.rpartition("/")[2], SCOPE)

  def _dropped(self, module, x: Array) -> Array:
    # The engine gives this key in steps with dropout, and in no others.
    if not self.dropout or not module.has_rng("dropout"):
      return x
    keep = 1.0 - self.dropout
    key = (module.scope.parent.rngs["dropout"].as_jax_rng()
           if module.name in self.fused  # one a has one input
           else module.make_rng("dropout"))
    mask = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(mask, x / keep, 0)


def merge(params: Mapping[str, Any], scale: float) -> dict:
  """Adds every `lora` to the kernel beside it.

  Args:
    params: base and delta, unrolled or stacked layers.
    scale: alpha / R.

  Returns:
    The base's tree, with kernels in their dtype:
    {"kernel": W, "lora": {"a", "b"}} becomes {"kernel": W + a b scale}.
  """

  def merge_one(path, own, delta):
    del path
    return {"kernel": added(own["kernel"], delta["a"], delta["b"], scale)}

  return interception.merged(params, SCOPE, merge_one)


# ------------------------------------------- projections fused in other models


def from_fused(
    a: np.ndarray, b: np.ndarray, widths: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Splits the delta of one fused projection among our separate ones.

  Hugging Face's GPT-2 makes queries, keys and values in one `c_attn`, so that
  PEFT has one a for all three. Each of ours gets a copy: the same function,
  but three matrices if it is trained on.

  Args:
    a: [in, R].
    b: [R, sum of widths], blocks in the order of `widths`; where a family
      interleaves them, reorder the columns first.
    widths: of the separate projections' outputs.

  Returns:
    A pair (a [in, R], b [R, width]) for each.
  """
  ends = np.cumsum(widths)
  return [(a, b[:, end - width:end]) for width, end in zip(widths, ends)]


def shared_a(pairs: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> bool:
  """Whether all a are one matrix, as `from_fused` makes them."""
  first, *others = [pair[0] for pair in pairs if pair is not None]
  return all(np.array_equal(first, other) for other in others)


def to_fused(
    pairs: Sequence[tuple[np.ndarray, np.ndarray] | None],
    widths: Sequence[int],
    tied: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Joins deltas of separate projections into one of their fused projection.

      a = [a_q a_k a_v]      b = [b_q  0   0 ]
                                 [ 0  b_k  0 ]
                                 [ 0   0  b_v]

  The rank grows to that of all pairs together. PEFT divides alpha by it, so
  multiply alpha by (new rank / R) as well.

  Args:
    pairs: (a [in, R], b [R, width]) of each; None for one without a delta.
    widths: of the separate projections' outputs.
    tied: all a are one matrix (`shared_a`): it is kept once and R stays. Ask
      this of all layers, since an adapter has one rank.

  Returns:
    a [in, R'] and b [R', sum of widths].
  """
  given = [pair for pair in pairs if pair is not None]
  ranks = [b.shape[0] for _, b in given]
  total = ranks[0] if tied else sum(ranks)
  b = np.zeros((total, sum(widths)), np.float32)
  row = column = 0
  for pair, width in zip(pairs, widths, strict=True):
    if pair is not None:
      rank = pair[1].shape[0]
      b[row:row + rank, column:column + width] = pair[1]
      row += 0 if tied else rank
    column += width
  if tied:
    return np.asarray(given[0][0]), b
  return np.concatenate([a for a, _ in given], axis=1), b
