"""16-bit products against float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import products

SIZES = {"k": 2, "b": 3, "q": 5, "s": 4, "d": 8, "r": 6, "h": 8, "f": 7}
EQUATIONS = ["rh,hf->rf", "rh,fh->rf", "kbqd,kbsd->kbqs", "kbqs,kbsd->kbqd",
             "bqd,hqd->bqh"]


def _arrays(equation):
  random = np.random.RandomState(0)
  terms = re.split(",|->", equation)
  return [random.randn(*(SIZES[letter] for letter in term)) for term in terms]


def _close(found, expected):
  """To half a unit in the last of bfloat16's 8 bits."""
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
      np.asarray(found, np.float64), expected, rtol=2**-8,
      atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_and_its_gradients_are_rounded_once(equation):
  x, y, weight = (
      jnp.asarray(a, jnp.bfloat16) for a in _arrays(equation))
  x64, y64, weight64 = (np.asarray(a, np.float64) for a in (x, y, weight))
  out, pull = jax.vjp(
      lambda x, y: products.einsum(equation, x, y), x, y)
  _close(out, np.einsum(equation, x64, y64))
  left, right, result = re.split(",|->", equation)
  to_x, to_y = pull(weight)
  _close(to_x, np.einsum(f"{result},{right}->{left}", weight64, y64))
  _close(to_y, np.einsum(f"{left},{result}->{right}", x64, weight64))


def test_sums_are_not_rounded():
  """1 + 256 terms of 2^-8: bfloat16's own sum stays 1."""
  row = np.full(257, 2.0**-8, np.float32)
  row[0] = 1.0
  out = products.einsum(
      "rh,hf->rf", jnp.asarray(row, jnp.bfloat16)[None],
      jnp.ones((257, 1), jnp.bfloat16), jnp.float32)
  assert out.dtype == jnp.float32
  assert out[0, 0] == 2.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_what_is_multiplied_keeps_its_dtype_both_ways(dtype):
  """No operand is converted to float32, the gradient neither."""
  x, y, weight = _arrays("rh,hf->rf")

  def gradients(x, y):
    return jax.grad(lambda x, y: jnp.sum(
        products.einsum("rh,hf->rf", x, y, jnp.float32) * weight), (0, 1))(
            x, y)

  text = jax.jit(gradients).lower(
      jnp.asarray(x, dtype), jnp.asarray(y, dtype)).as_text()
  found = re.findall(r"dot_general.*: \(tensor<\S*x(\w+)>, "
                     r"tensor<\S*x(\w+)>\) -> tensor<\S*x(\w+)>", text)
  narrow = "bf16" if dtype == jnp.bfloat16 else "f32"
  assert found == [(narrow, narrow, "f32")] * 2


def test_matmul_takes_any_number_of_axes():
  x, kernel = np.random.RandomState(0).randn(2, 3, 8), np.ones((8, 5))
  for dtype in (jnp.float32, jnp.bfloat16):
    out = products.matmul(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
    assert out.dtype == dtype
    expected = np.asarray(jnp.asarray(x, dtype), np.float64) @ kernel
    np.testing.assert_allclose(
        np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-5)


def test_float32_is_jaxs_own():
  x, y, _ = _arrays("kbqd,kbsd->kbqs")
  np.testing.assert_array_equal(
      products.einsum("kbqd,kbsd->kbqs", x.astype("f"), y.astype("f")),
      jnp.einsum("kbqd,kbsd->kbqs", x.astype("f"), y.astype("f")))
