"""(IA)3: keys, values and the MLP's inner activations, scaled by a vector.

    key(x) * l_k        value(x) * l_v        wo(l_ff * h)

Liu et al. 2022 (arXiv 2205.05638, 3.3). The vectors start as ones. A bias of a
scaled projection is scaled with it, as in Hugging Face PEFT.

`OriginalIa3` has the parameters where google-research/prompt-tuning has them:
the same function of other paths and shapes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning import errors
from prompt_tuning.methods import interception
from prompt_tuning.models import layers

Array = jax.Array

SCOPE = "ia3"


class Scale(nn.Module):
  """The trained vector: [width], float32."""

  width: int
  axis: str

  @nn.compact
  def __call__(self) -> Array:
    return _vector("scale", (self.width,), (self.axis,))


class OriginalScale(nn.Module):
  """The vector as the original shapes it, [width] or [N, D], as [width]."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]

  @nn.compact
  def __call__(self) -> Array:
    return _vector("ia3_scaling", self.shape, self.axes).reshape(-1)


def _vector(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
  return partitioning.param_with_axes(
      name, nn.initializers.ones, shape, jnp.float32, axes=axes)


@dataclasses.dataclass(frozen=True)
class Ia3:
  """Scales of the outputs, or the inputs, of Dense modules.

  Attributes:
    targets: patterns of whole module paths whose output [out] is scaled:
      `.*attention/(key|value)`.
    feedforward_targets: patterns of whole module paths whose input [in] is
      scaled: `.*/mlp/wo`. A path that both match is one of these.
  """

  targets: Sequence[str] = (r".*attention/(key|value)",)
  feedforward_targets: Sequence[str] = (r".*/mlp/wo",)

  def __post_init__(self):
    interception.check_patterns("Ia3.targets", self.targets)
    interception.check_patterns(
        "Ia3.feedforward_targets", self.feedforward_targets)
    if not self.patterns:
      raise errors.UserError(
          "Ia3 has neither targets nor feedforward_targets: give "
          "patterns of what it is to scale.")

  @property
  def patterns(self) -> tuple[str, ...]:
    """See `interception.Delta`."""
    return (*self.targets, *self.feedforward_targets)

  def interceptor(self) -> Callable[..., Any]:
    """See `interception.Delta`."""
    return interception.interceptor(
        self.patterns, self._call, self._kernel)

  def merge(self, params: Mapping[str, Any]) -> dict:
    """See `interception.Delta`."""
    return merge(params, self.feedforward_targets)

  def _call(self, plain, module: layers.Dense, x: Array) -> Array:
    if self._scales_input(module):
      return plain(x * self._scale(module, x.shape[-1]).astype(x.dtype))
    y = plain(x)
    return y * self._scale(module, x.shape[-1]).astype(y.dtype)

  def _kernel(self, kernel: Array, module: layers.Dense) -> Array:
    scale = self._scale(module, kernel.shape[0])
    return scaled(kernel, scale, self._scales_input(module))

  def _scales_input(self, module: layers.Dense) -> bool:
    return interception.matches(
        self.feedforward_targets, "/".join(module.path))

  def _scale(self, module: layers.Dense, width: int) -> Array:
    size, axis = module.features, module.axes[1]
    if self._scales_input(module):
      size, axis = width, module.axes[0]
    return Scale(size, axis, parent=interception.inside(module, SCOPE))()


# Our Dense modules, and the scopes beside them where the original has scales.
_ORIGINAL_SCOPES = {
    "key": "k_conv", "value": "v_conv", "wo": "intermediate_conv"}


@dataclasses.dataclass(frozen=True)
class OriginalIa3(Ia3):
  """`Ia3` of T5 with the original's parameters.

      …attention/{k,v}_conv/ia3_scaling [N, D]
      …mlp/intermediate_conv/ia3_scaling [F]
  """

  def merge(self, params: Mapping[str, Any]) -> dict:
    """See `interception.Delta`."""
    return merge(to_plain(params), self.feedforward_targets)

  def _scale(self, module: layers.Dense, width: int) -> Array:
    if module.name not in _ORIGINAL_SCOPES or (
        self._scales_input(module) != (module.name == "wo")):
      raise errors.UserError(
          f"OriginalIa3 is to scale {'/'.join(module.path)}: it can scale the "
          "outputs of key and value and the inputs of wo; Ia3 can do others.")
    scope = module.scope.parent.push(
        _ORIGINAL_SCOPES[module.name], reuse=True)
    if module.name == "wo":
      return OriginalScale((width,), (module.axes[0],), parent=scope)()
    heads = module.parent.num_heads
    return OriginalScale(
        (heads, module.features // heads), ("heads", "kv"), parent=scope)()


def to_plain(params: Mapping[str, Any]) -> dict:
  """Parameters of `OriginalIa3` where `Ia3` has them.

  Args:
    params: with or without the base's, unrolled or stacked layers.

  Returns:
    The tree with {"key": {…}, "k_conv": {"ia3_scaling": [N, D]}} as
    {"key": {…, "ia3": {"scale": [N * D]}}}.
  """
  out = {}
  for name, value in params.items():
    out[name] = to_plain(value) if isinstance(value, Mapping) else value
  for dense, scope in _ORIGINAL_SCOPES.items():
    if scope in out:
      scale = out.pop(scope)["ia3_scaling"]
      if dense != "wo":
        scale = scale.reshape(*scale.shape[:-2], -1)
      out[dense] = {**out.get(dense, {}), SCOPE: {"scale": scale}}
  return out


def scaled(kernel: Array, scale: Array, of_input: bool) -> Array:
  """The kernel with its rows (`of_input`) or columns scaled, in its dtype.

  Args:
    kernel: [..., in, out].
    scale: [..., in] or [..., out].
    of_input: which of the two.

  Returns:
    [..., in, out].
  """
  scale = scale[..., :, None] if of_input else scale[..., None, :]
  return (kernel.astype(jnp.float32) * scale).astype(kernel.dtype)


def merge(
    params: Mapping[str, Any], feedforward_targets: Sequence[str]
) -> dict:
  """Multiplies every `ia3` into the kernel (and bias) beside it.

  Args:
    params: base and delta, unrolled or stacked layers.
    feedforward_targets: see `Ia3`.

  Returns:
    The base's tree, with arrays in their dtype:
    {"kernel": W, "ia3": {"scale": l}} becomes {"kernel": W l}.
  """

  def merge_one(path, own, delta):
    scale = delta["scale"]
    of_input = interception.matches(feedforward_targets, path)
    out = {"kernel": scaled(own["kernel"], scale, of_input)}
    if "bias" in own and not of_input:
      bias = own["bias"]
      out["bias"] = (bias.astype(jnp.float32) * scale).astype(bias.dtype)
    return out

  return interception.merged(params, SCOPE, merge_one)
