"""The version of this package, and of those that its numbers depend on."""

import importlib.metadata
import platform

__version__ = "0.1.0"

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "gin-config", "seqio", "sentencepiece", "safetensors", "sacrebleu",
    "rouge-score", "nltk")


def installed() -> dict[str, str]:
  """Name -> version of what a run depends on; absent packages left out."""
  found = {"prompt_tuning": __version__, "python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
