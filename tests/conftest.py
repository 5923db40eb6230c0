"""Shared fixtures: 8 virtual CPU devices, and the real data beside the root."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8")

import pytest  # noqa: E402  (the flags must be set before jax is imported)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
  """The folder of real inputs and expected outputs beside the checkout."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip(f"no {path}: the real inputs are not beside this checkout")
  return path


@pytest.fixture(scope="session")
def expectations():
  """Small committed expected values (see tests/expectations/README.md)."""
  return ROOT / "tests" / "expectations"
