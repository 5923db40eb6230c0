"""Adapters: small networks put into the layers of a frozen model.

    h + up(relu(down(h)))        down [H, A], up [A, H], with biases

The baseline of Li & Liang 2021 (arXiv 2101.00190, 5.2), in both designs of
their code: `layer` has one adapter a layer, on all that leaves it, which a norm
of its own reads first (Lin et al. 2020); `projections` has two, without norms,
on what attention and the MLP give before it is added (Houlsby et al. 2019).
Cross-attention counts as attention.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import jax

from prompt_tuning import errors
from prompt_tuning.methods import interception
from prompt_tuning.models import bart, causal_lm, layers, t5, text_encoder

Array = jax.Array

SCOPE = "adapter"
DESIGNS = ("layer", "projections")
_LAYERS = (
    causal_lm.Layer, t5.EncoderLayer, t5.DecoderLayer, bart.EncoderLayer,
    bart.DecoderLayer, text_encoder.Layer)


_MERGED = (
    "An adapter cannot be merged into the base's weights: train it alone "
    "(TRAINABLE_REGEX = ['.*/adapter/.*']) and use it with RUN_DIR.")


def check_frozen(delta: Any, trained: Collection[str]) -> None:
  """Refuses to train a base that could not be written with its adapters.

  Args:
    delta: a model's; others than `Adapter` are fine.
    trained: paths of the base's parameters that are to be trained.

  Raises:
    UserError: if there are any.
  """
  if isinstance(delta, Adapter) and trained:
    raise errors.UserError(
        f"{_MERGED} TRAINABLE_REGEX also matches {min(trained)}.")


class Bottleneck(nn.Module):
  """The trained network: h [B, T, H] -> [B, T, H].

  Attributes:
    width: A.
    has_norm: whether a layer norm stands in front of it.
    dtype: of the activations; parameters are float32.
  """

  width: int
  has_norm: bool
  dtype: Any

  @nn.compact
  def __call__(self, h: Array) -> Array:
    start = nn.initializers.normal(0.02)  # GPT-2's, as the authors
    x = layers.LayerNorm(dtype=self.dtype, name="norm")(h) if (
        self.has_norm) else h
    x = layers.Dense(
        self.width, ("embed", "adapter"), self.dtype, start, use_bias=True,
        name="down")(x)
    return h + layers.Dense(
        h.shape[-1], ("adapter", "embed"), self.dtype, start, use_bias=True,
        name="up")(jax.nn.relu(x))


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Bottlenecks in every layer.

  Attributes:
    width: A, of the bottleneck; the authors' 100.
    design: "layer" or "projections", see the module.
  """

  width: int = 100
  design: str = "layer"

  def __post_init__(self):
    if type(self.width) is not int or self.width < 1:
      raise errors.UserError(
          f"ADAPTER_WIDTH (Adapter.width) is {self.width!r}: it must be a "
          "whole number from 1 up.")
    if self.design not in DESIGNS:
      raise errors.UserError(
          f"ADAPTER_DESIGN (Adapter.design) is {self.design!r}: it can be "
          f"{' or '.join(map(repr, DESIGNS))}.")

  @property
  def patterns(self) -> Sequence[str]:
    """See `interception.Delta`."""
    if self.design == "layer":
      return ()
    return (r".*attention/out", r".*/mlp/wo")

  def interceptor(self) -> Callable[..., Any]:
    """See `interception.Delta`."""
    if self.design == "projections":
      return interception.interceptor(
          self.patterns,
          lambda plain, module, x: self._changed(module, plain(x)),
          lambda kernel, module: kernel)

    def intercept(next_function, arguments, options, context):
      out = next_function(*arguments, **options)
      if context.method_name != "__call__" or not isinstance(
          context.module, _LAYERS):
        return out
      x, own = out
      return self._changed(context.module, x), own

    return intercept

  def merge(self, params: Mapping[str, Any]) -> dict:
    """Refuses: no weights of the base compute what an adapter computes.

    Raises:
      UserError: always.
    """
    raise errors.UserError(_MERGED)

  def _changed(self, module: nn.Module, h: Array) -> Array:
    return Bottleneck(
        self.width, self.design == "layer", h.dtype,
        parent=interception.inside(module, SCOPE))(h)
