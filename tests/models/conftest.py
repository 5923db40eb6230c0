"""A T5 small enough to compile in a second, with a prompt, random weights."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.models import encoder_decoder, t5
from prompt_tuning.train import prompts as train_prompts


class TinyT5:
  """Builds the module, its parameters and a padded batch."""

  config = {
      "vocab_size": 30, "embed_dim": 8, "num_heads": 2, "head_dim": 3,
      "mlp_dim": 10, "num_encoder_layers": 2, "num_decoder_layers": 2,
      "relpos_num_buckets": 8, "relpos_max_distance": 8}
  prompt_length = 3
  # Lengths 6, 4 and 1; targets of 4, 2 and 1 tokens; 1 is EOS.
  batch = {
      "encoder_input_tokens": np.array([
          [5, 9, 8, 29, 7, 1], [3, 12, 4, 1, 0, 0], [1, 0, 0, 0, 0, 0]]),
      "decoder_input_tokens": np.array([
          [0, 11, 4, 28], [0, 6, 1, 0], [0, 1, 0, 0]]),
      "decoder_target_tokens": np.array([
          [11, 4, 28, 1], [6, 1, 0, 0], [1, 0, 0, 0]]),
      "decoder_loss_weights": np.array([
          [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])}

  @classmethod
  def module(cls, prompt=True, **changes):
    """The Linen module, by default with a prompt in front of the input."""
    factory = functools.partial(
        train_prompts.Prompt,
        prompt=prompts.Prompt(length=cls.prompt_length)) if prompt else None
    return t5.EncoderDecoder(
        t5.Config(**{**cls.config, **changes}), prompt_factory=factory)

  @classmethod
  def model(cls, prompt=True, module=None, **options):
    """The module with its loss and decoding."""
    vocabulary = types.SimpleNamespace(eos_id=1)
    return encoder_decoder.EncoderDecoderModel(
        module or cls.module(prompt), vocabulary, vocabulary, **options)

  @classmethod
  def params(cls, module=None, seed=0):
    """Random parameters that give logits of about 1, as NumPy arrays."""
    random = np.random.RandomState(seed)
    module = module or cls.module()

    def draw(path, leaf):
      array = random.randn(*leaf.shape)
      if path[-1].key == "scale":
        array = 1.0 + 0.2 * array
      elif path[-1].key == "kernel":
        array /= np.sqrt(leaf.shape[-2])
      return array.astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        draw, cls.model(module=module).abstract()[0])

  @staticmethod
  def stacked(params):
    """`layers_0`, `layers_1`, … of both sides as `layers`, leading axis L."""
    out = {"token_embedder": params["token_embedder"]}
    for side in ("encoder", "decoder"):
      one_by_one = [
          params[side][name] for name in sorted(params[side])
          if name.startswith("layers_")]
      out[side] = {
          name: value for name, value in params[side].items()
          if not name.startswith("layers_")}
      out[side]["layers"] = jax.tree.map(
          lambda *leaves: np.stack(leaves), *one_by_one)
    return out

  @staticmethod
  def empty_cache(module, inputs, length):
    """The decoding cache, as zeros."""
    targets = jnp.ones((len(inputs), length), jnp.int32)
    variables = jax.eval_shape(lambda: module.init(
        jax.random.key(0), inputs, targets, enable_dropout=False,
        decode=True))
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables["cache"])


@pytest.fixture(scope="session")
def tiny_t5():
  return TinyT5
