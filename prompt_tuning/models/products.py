"""Products of 16-bit arrays, forward and back, that are summed in float32.

XLA multiplies bfloat16 natively on a CPU only into float32: asked for bfloat16
it converts both operands first, at half the speed. And where a product into
float32 is differentiated, JAX multiplies its float32 gradient by the 16-bit
operand in float32, also on an accelerator; here the gradient is rounded to the
operand's dtype before, as other libraries do.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def einsum(equation: str, x: Array, y: Array, dtype=None) -> Array:
  """`jnp.einsum` of two arrays.

  Args:
    equation: each letter is in two of the three terms, or in all; none twice
      in a term, and no ellipsis.
    x: the first array.
    y: the second, in the same dtype.
    dtype: of the result; None is that of the arrays.

  Returns:
    The product. In float32 it is JAX's own.
  """
  if x.dtype.itemsize != 2 or x.dtype != y.dtype:
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)
  return _narrow(equation, jnp.dtype(dtype or x.dtype), x, y)


def matmul(x: Array, kernel: Array) -> Array:
  """`x @ kernel`: [..., H], [H, F] -> [..., F]."""
  if x.dtype.itemsize != 2:
    return x @ kernel
  rows = einsum("rh,hf->rf", x.reshape(-1, x.shape[-1]), kernel)
  return rows.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow(equation: str, dtype, x: Array, y: Array) -> Array:
  if jax.default_backend() != "cpu":
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)
  return _merged(equation, x, y).astype(dtype)


def _merged(equation: str, x: Array, y: Array) -> Array:
  """Into float32, with the leading axes that all terms share made one.

  XLA's CPU backend converts the operands of products with several such axes.
  """
  terms, out = equation.split("->")
  left, right = terms.split(",")
  count = 0
  while left[count:count + 1] == right[count:count + 1] == out[
      count:count + 1] != "":
    count += 1
  if count < 2:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
  lead, cut = x.shape[:count], count - 1
  product = jnp.einsum(
      f"{left[cut:]},{right[cut:]}->{out[cut:]}",
      *(z.reshape(-1, *z.shape[count:]) for z in (x, y)),
      preferred_element_type=jnp.float32)
  return product.reshape(*lead, *product.shape[1:])


def _forward(equation, dtype, x, y):
  return _narrow(equation, dtype, x, y), (x, y)


def _backward(equation, dtype, kept, gradient):
  del dtype
  x, y = kept
  terms, out = equation.split("->")
  left, right = terms.split(",")
  gradient = gradient.astype(x.dtype)
  return (_narrow(f"{out},{right}->{left}", x.dtype, gradient, y),
          _narrow(f"{left},{out}->{right}", y.dtype, x, gradient))


_narrow.defvjp(_forward, _backward)
