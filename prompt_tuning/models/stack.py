"""A stack of like layers: unrolled or scanned, with what remat recomputes."""

import operator
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning import errors

Array = jax.Array

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": None,
}


def check_options(config) -> None:
  """Refuses a configuration whose `remat` or `dtype` does not exist.

  Raises:
    UserError: naming the gin macro and the choices.
  """
  if config.remat not in ("none", *REMAT_POLICIES):
    raise errors.UserError(
        f"LAYER_REMAT: remat is {config.remat!r}, which is not one of 'none', "
        "'dots', 'full'.")
  try:
    jnp.dtype(config.dtype)
  except TypeError as error:
    raise errors.UserError(
        f"ACTIVATION_DTYPE is {config.dtype!r}: give 'float32' or 'bfloat16'."
    ) from error


def run(
    layer: type[nn.Module],
    config,
    length: int,
    x: Array,
    own: Any,
    shared: tuple,
    static: tuple,
    **attributes: Any,
) -> tuple[Array, Any]:
  """Applies `length` layers.

  Args:
    layer: the module class; `layer(config, **attributes)(x, own, *shared,
      *static)` gives (x, out), where own and out are a layer's alone.
    config: has `scan_layers` and `remat`.
    length: L.
    x: [B, T, H] what goes from layer to layer.
    own: what each layer gets for itself: a tree whose leaves have a leading
      axis L; where layers are unrolled also a list of L; or None.
    shared: arrays that every layer sees.
    static: Python values that every layer sees.
    **attributes: of the layer, besides its config.

  Returns:
    x [B, T, H], and the outs: stacked when scanned, otherwise a list.
  """
  if config.remat != "none":
    first_static = 3 + len(shared)  # `self`, x and own come first
    layer = nn.remat(
        layer, policy=REMAT_POLICIES[config.remat],
        prevent_cse=not config.scan_layers,
        static_argnums=tuple(
            range(first_static, first_static + len(static))))
  if not config.scan_layers:
    outs = []
    for i in range(length):
      mine = own[i] if isinstance(own, list) else jax.tree.map(
          operator.itemgetter(i), own)
      x, out = layer(config, **attributes, name=f"layers_{i}")(
          x, mine, *shared, *static)
      outs.append(out)
    return x, outs

  def body(one_layer, carry, mine, *others):
    return one_layer(carry, mine, *others, *static)

  scanned = partitioning.scan_with_axes(
      body, variable_axes={"params": 0, "cache": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, *(nn.broadcast,) * len(shared)), length=length,
      axis_name="layers", axes_collections=("params", "cache"))
  return scanned(
      layer(config, **attributes, name="layers"), x, own, *shared)
