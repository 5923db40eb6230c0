"""Rotary positions against complex rotations and the published formulas."""

import numpy as np
import pytest

from prompt_tuning.models import rotary

THETA = 10000.0


def _rotated(x, positions, rates, interleaved=False):
  cos, sin = rotary.angles(np.asarray([positions]), rates)
  return np.asarray(rotary.rotate(x, cos, sin, interleaved))


def _complex_rotation(x, positions, rates):
  """Plane i is features i and i + R / 2, as one complex number."""
  half = len(rates)
  z = x[..., :half] + 1j * x[..., half:2 * half]
  z = z * np.exp(1j * np.asarray(positions)[:, None] * rates)
  return np.concatenate([z.real, z.imag, x[..., 2 * half:]], axis=-1)


def test_is_a_complex_rotation():
  x = np.random.default_rng(0).standard_normal((1, 2, 5, 10), np.float32)
  positions = [3, 0, 7, 100, 2]
  rates = rotary.frequencies(8, THETA)
  np.testing.assert_allclose(
      _rotated(x, positions, rates),
      _complex_rotation(x.astype(float), positions, rates.astype(float)),
      atol=1e-5)


def test_features_beyond_the_rotated_ones_stay():
  x = np.random.default_rng(0).standard_normal((1, 1, 3, 6), np.float32)
  out = _rotated(x, [1, 2, 3], rotary.frequencies(4, THETA))
  np.testing.assert_array_equal(out[..., 4:], x[..., 4:])


def test_interleaved_is_the_same_rotation_of_other_planes():
  x = np.random.default_rng(0).standard_normal((1, 2, 4, 8), np.float32)
  rates = rotary.frequencies(8, THETA)
  apart = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
  out = _rotated(x, [0, 1, 5, 9], rates, interleaved=True)
  np.testing.assert_allclose(
      np.concatenate([out[..., 0::2], out[..., 1::2]], axis=-1),
      _rotated(apart, [0, 1, 5, 9], rates), atol=1e-6)


def test_linear_scaling_is_slower_positions():
  scaling = rotary.RopeScaling("linear", 4.0)
  np.testing.assert_allclose(
      rotary.frequencies(16, THETA, scaling),
      rotary.frequencies(16, THETA) / 4, rtol=1e-6)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_by_wavelength(factor):
  """Short waves stay, long ones are divided, between them it is blended."""
  scaling = rotary.RopeScaling("llama3", factor, 1.0, 4.0, 8192)
  plain = rotary.frequencies(128, 500000.0).astype(float)
  scaled = rotary.frequencies(128, 500000.0, scaling)
  wavelengths = 2 * np.pi / plain
  for rate, new, wave in zip(plain, scaled, wavelengths):
    if wave < 8192 / 4:
      want = rate
    elif wave > 8192:
      want = rate / factor
    else:
      blend = (8192 / wave - 1.0) / (4.0 - 1.0)
      want = (1 - blend) * rate / factor + blend * rate
    assert new == pytest.approx(want, rel=1e-5)
