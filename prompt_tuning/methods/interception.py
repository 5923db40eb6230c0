"""How a method changes `layers.Dense` without the model knowing of it.

A delta (`lora.Lora`, `ia3.Ia3`, `adapter.Adapter`) is an object with

    patterns          of the paths of the Dense modules it changes
    interceptor()     for `flax.linen.intercept_methods`
    merge(params)     the base's parameters with the delta worked into them

Its parameters lie inside the Dense that they change: a Dense at
`decoder/layers_0/attention/query` has `…/query/kernel` and `…/query/lora/a`.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import re
from typing import Any, Protocol

from flax import traverse_util
import flax.linen as nn
import jax

from prompt_tuning import errors
from prompt_tuning.models import layers, quantized

Array = jax.Array
Tree = Mapping[str, Any]


class Delta(Protocol):
  """What a model asks of a method that changes its modules.

  One that changes whole layers has no patterns.
  """

  patterns: Sequence[str]

  def interceptor(self) -> Callable[..., Any]:
    """Goes into `flax.linen.intercept_methods`; make a new one each time."""

  def merge(self, params: Tree) -> dict:
    """Parameters of base and delta -> the base's alone, same function."""


def applied(delta: Delta | None):
  """The context in which a module's `init` and `apply` run with the delta."""
  if delta is None:
    return contextlib.nullcontext()
  return nn.intercept_methods(delta.interceptor())


def interceptor(
    patterns: Sequence[str],
    call: Callable[[Callable[[Array], Array], layers.Dense, Array], Array],
    kernel: Callable[[Array, layers.Dense], Array],
) -> Callable[..., Any]:
  """Changes what the matching Dense modules do.

  A Dense is used in two ways, neither by way of the other: called, and asked
  for its kernel (the cross-attention of few targets,
  `layers.attend_to_memory`). `call` and `kernel` must make the same function
  of both.

  Args:
    patterns: see `Delta`.
    call: (the Dense's own `__call__`, the Dense, x [..., in]) ->
      [..., out].
    kernel: (W [in, out], the Dense) -> [in, out].

  Returns:
    A function for `flax.linen.intercept_methods`.
  """

  def intercept(next_function, arguments, options, context):
    module, method = context.module, context.method_name
    if (method not in ("__call__", "kernel")
        or not isinstance(module, layers.Dense)
        or not matches(patterns, "/".join(module.path))):
      return next_function(*arguments, **options)
    if method == "__call__":
      return call(next_function, module, *arguments, **options)
    return kernel(next_function(*arguments, **options), module)

  return intercept


def inside(module: nn.Module, name: str):
  """The scope `name` below a module's, to be a new submodule's `parent`.

  Flax lets only a module's own `setup` or compact method add submodules; a
  scope may be added to by anyone.
  """
  return module.scope.push(name, reuse=True)


def beside(module: nn.Module, sibling: str, name: str):
  """`inside` of the module `sibling` of the same parent, used yet or not."""
  return module.scope.parent.push(sibling, reuse=True).push(name, reuse=True)


def matches(patterns: Sequence[str], path: str) -> bool:
  """Whether any pattern matches the whole path."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def check_patterns(name: str, patterns: Sequence[str]) -> None:
  """Raises a `UserError` unless all are regular expressions, in a list."""
  if isinstance(patterns, str):
    raise errors.UserError(
        f"{name} is {patterns!r}: give a list of patterns, [{patterns!r}].")
  for pattern in patterns:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise errors.UserError(
          f"{name} has {pattern!r}, which is not a regular expression: "
          f"{error}.") from error


def check_targets(delta: Delta | None, params: Tree) -> None:
  """Refuses a delta that leaves out, without a word, what it should change.

  Args:
    delta: None is fine.
    params: the model's parameters or their shapes.

  Raises:
    UserError: naming the pattern that matches no Dense module.
  """
  if delta is None:
    return
  paths = [
      path.removesuffix("/kernel")
      for path in traverse_util.flatten_dict(params, sep="/")
      if path.endswith("/kernel")]
  for pattern in delta.patterns:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise errors.UserError(
          f"{type(delta).__name__} is to change {pattern!r}, which matches no "
          "projection of the model; their paths look like "
          f"{', '.join(paths[:3])}.")


def merged(
    params: Tree, name: str, merge_one: Callable[[str, Tree, Tree], dict]
) -> dict:
  """Works every delta of a tree into the Dense that holds it.

  Args:
    params: base and delta.
    name: of the delta's scope, such as `lora`.
    merge_one: (path of the Dense, its own parameters, the delta's) -> those
      of the Dense that change.

  Returns:
    The tree without the deltas.

  Raises:
    UserError: if a kernel is quantised; the sum would be rounded once more.
  """

  def walk(path: tuple[str, ...], tree: Tree) -> dict:
    own = {key: walk((*path, key), value) if isinstance(value, Mapping)
           else value for key, value in tree.items() if key != name}
    if name not in tree:
      return own
    if isinstance(own["kernel"], quantized.Int8):
      raise errors.UserError(
          f"{'/'.join(path)}/kernel is in int8, so nothing can be merged into "
          "it: load the base with WEIGHT_DTYPE 'float32' or 'bfloat16'.")
    return {**own, **merge_one("/".join(path), own, tree[name])}

  return walk((), params)
