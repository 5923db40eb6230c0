"""Networks that make numbers for a prompt of one example's encoding.

A head is dropout, a dense layer, tanh and another dense layer, as in LOPA (Jain
et al. 2024, arXiv 2405.15282) and IDPG (Wu et al. 2022, arXiv 2204.04497).
Where no other network encodes an example, its encoding is the mean of the
model's own embedded input.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.methods import linear

Array = jax.Array
Initializer = Callable[..., Array]


def pooled(x_embed: Array, is_input: Array) -> Array:
  """The mean of each example's embedded input, in float32, as a constant.

  No gradient goes through it, so a prompt that is made of it costs no more of
  the embedding than any other.

  Args:
    x_embed: [B, T, H].
    is_input: [B, T] bool.

  Returns:
    [B, H]; zeros for an example without input.
  """
  weights = is_input.astype(jnp.float32)
  total = jnp.einsum("bt,bth->bh", weights, x_embed.astype(jnp.float32))
  count = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
  return jax.lax.stop_gradient(total / count)


def encoding_of(
    encoder: nn.Module | None, x: Array | None, x_embed: Array,
    instance: prompts.Instance | None,
) -> Array:
  """The encoding [B, E]: of an encoder, as given, or else the pooled input.

  Args:
    encoder: what is trained with the prompt, (tokens [B, S], mask [B, S]) ->
      [B, E]; None if there is none.
    x: [B, T] tokens.
    x_embed: [B, T, H].
    instance: what is known of the examples; None: nothing.

  Raises:
    UserError: in a layer's prompt, where neither encoding nor tokens are
      known, and where the encoder's tokens are not.
  """
  instance = instance or prompts.Instance()
  if encoder is not None:
    if instance.tokens is None:
      raise errors.UserError(
          "FREEZE_ENCODER is False, but the batches have no tokens for the "
          "encoder: train with python -m prompt_tuning.train, or freeze it.")
    return encoder(instance.tokens, instance.mask)
  if instance.encoding is not None:
    return instance.encoding
  if instance.is_input is None and x is None:
    raise errors.UserError(
        "A prompt that differs by example stands among the embedded tokens; in "
        "a layer of the encoder use prompts.Prompt.")
  return pooled(x_embed, x > 0 if instance.is_input is None else
                instance.is_input)


def trained_encoder(encoder: Any, freeze_encoder: bool) -> nn.Module | None:
  """The network of an encoder that is trained with the prompt.

  Args:
    encoder: see `data.encodings`.
    freeze_encoder: gives None; encodings are then made once and kept.

  Raises:
    UserError: if there is nothing to train.
  """
  if freeze_encoder:
    return None
  if encoder is None:
    raise errors.UserError(
        "FREEZE_ENCODER is False and ENCODER is None: give an encoders/ file "
        "to train, or leave FREEZE_ENCODER out.")
  return encoder.module


def prompt_of(module: nn.Module) -> tuple[str, nn.Module] | None:
  """The prompt of a model that is made per example, and where it lies.

  Args:
    module: a `causal_lm.CausalLM`, `t5.EncoderDecoder` or
      `masked_lm.MaskedLM`.

  Returns:
    The path of its parameters and its module; None if the model has none.
  """
  factory = getattr(module, "prompt_factory", None)
  prompt = getattr(factory() if factory else None, "prompt", None)
  if prompt is None or not prompts.takes_instance(prompt):
    return None
  side = "decoder" if hasattr(module, "prefix_factory") else "encoder"
  return f"{side}/prompt/prompt", prompt


def phm_kernel(rules: Array, weights: Array) -> Array:
  """The kernel of a parametrised hypercomplex multiplication layer.

  The sum of n Kronecker products (Zhang et al. 2021, arXiv 2102.08597, eq. 2).

  Args:
    rules: [n, n, n].
    weights: [n, in / n, out / n].

  Returns:
    [in, out].
  """
  parts = jnp.einsum("kab,kij->aibj", rules, weights)  # [n, in/n, n, out/n]
  return parts.reshape(
      rules.shape[1] * weights.shape[1], rules.shape[2] * weights.shape[2])


def _xavier(fan_in: int, fan_out: int) -> Initializer:
  bound = (6 / (fan_in + fan_out))**0.5

  def initialize(rng, shape, dtype=jnp.float32):
    return jax.random.uniform(rng, shape, dtype, -bound, bound)

  return initialize


class Layer(nn.Module):
  """[..., in] -> [..., features], from a kernel or from a sum of products.

  Attributes:
    features: the output's width.
    axes: logical names of the kernel's two axes.
    scale: standard deviation of the kernel's initial values.
    bias_init: of the bias.
    phm: n of `phm_kernel`, whose parts start as IDPG's do; None is a kernel.
  """

  features: int
  axes: tuple[str, str]
  scale: float
  bias_init: Initializer
  phm: int | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    if self.phm is None:
      kernel = partitioning.param_with_axes(
          "kernel", nn.initializers.normal(self.scale),
          (width, self.features), jnp.float32, axes=self.axes)
    else:
      kernel = self._product(width, self.phm)
    bias = partitioning.param_with_axes(
        "bias", self.bias_init, (self.features,), jnp.float32,
        axes=self.axes[1:])
    return x @ kernel + bias

  def _product(self, width: int, n: int) -> Array:
    if n < 1 or width % n or self.features % n:
      raise errors.UserError(
          f"PHM is {n}, and a layer from {width} to {self.features} numbers "
          "cannot be cut into so many parts: give a divisor of both, or None.")
    inner, outer = width // n, self.features // n
    rules = partitioning.param_with_axes(
        "rules", _xavier(n * n, n * n), (n, n, n), jnp.float32,
        axes=("prompt_rank",) * 3)
    # torch counts the fans of [n, out / n, in / n] from its first two axes.
    weights = partitioning.param_with_axes(
        "weights", _xavier(outer * inner, width), (n, inner, outer),
        jnp.float32, axes=("prompt_rank", *self.axes))
    return phm_kernel(rules, weights)


class Head(nn.Module):
  """Encodings [B, E] -> [B, features], float32.

  Attributes:
    features: the output's width.
    width: of the hidden layer; E if None.
    dropout: share of the encoding that is dropped; only where there is an rng
      `dropout`, in training.
    hidden_scale: standard deviation of the first kernel's initial values.
    out_scale: of the second kernel's.
    original_biases: start the hidden layer's bias as LOPA's and IDPG's code
      leaves it, uniform in +-1 / sqrt(E), and not at 0.
    phm: make both kernels of so many parts, see `phm_kernel`; None does not.
  """

  features: int
  width: int | None = None
  dropout: float = 0.1
  hidden_scale: float = 0.02
  out_scale: float = 0.02
  original_biases: bool = False
  phm: int | None = None

  @nn.compact
  def __call__(self, encoding: Array) -> Array:
    width = encoding.shape[-1]
    x = encoding.astype(jnp.float32)
    if self.dropout and self.has_rng("dropout"):
      x = nn.Dropout(self.dropout, deterministic=False)(x)
    zeros = nn.initializers.zeros
    x = jnp.tanh(Layer(
        self.width or width, ("prompt_embed", "prompt_hidden"),
        self.hidden_scale,
        linear.uniform_fan_in(width) if self.original_biases else zeros,
        self.phm, name="hidden")(x))
    return Layer(
        self.features, ("prompt_hidden", "prompt_embed"), self.out_scale, zeros,
        self.phm, name="out")(x)
