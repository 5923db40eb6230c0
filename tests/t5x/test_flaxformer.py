"""Oracle: our own module; Flaxformer's has its names, axes and logits."""

import functools

import jax
import numpy as np
import pytest

WHY = "T5X and Flaxformer are not installed: see docs/t5x.md"
pytest.importorskip("t5x", reason=WHY)
pytest.importorskip("flaxformer", reason=WHY)

from prompt_tuning import errors, prompts  # noqa: E402
from prompt_tuning.models import t5  # noqa: E402
from prompt_tuning.t5x import flaxformer  # noqa: E402
from prompt_tuning.train import prompts as train_prompts  # noqa: E402
from prompt_tuning.train import state as state_lib  # noqa: E402

SIZES = dict(
    vocab_size=128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=4,
    relpos_max_distance=8)
BATCH = (np.array([[3, 4, 5, 1, 0, 0], [7, 8, 9, 10, 11, 1]], np.int32),
         np.array([[0, 5, 6], [0, 9, 1]], np.int32),
         np.array([[5, 6, 1], [9, 1, 0]], np.int32))
PROMPT = functools.partial(
    train_prompts.Prompt, prompt=prompts.Prompt(length=5))
SUFFIX = functools.partial(PROMPT, combine=train_prompts.suffix_prompt)


@pytest.mark.parametrize("prompt", [PROMPT, SUFFIX, None])
@pytest.mark.parametrize("options", [
    {}, dict(tie_logits=True, mlp_activations=("relu",), remat="full")])
def test_parameters_axes_and_logits_are_ours(prompt, options):
  config = t5.Config(**SIZES, **options)
  ours = t5.EncoderDecoder(config, prompt)
  theirs = flaxformer.encoder_decoder(config, prompt)
  both = [module.init(jax.random.PRNGKey(0), *BATCH, enable_dropout=False)
          for module in (ours, theirs)]
  shapes = [{path: value.shape for path, value in
             state_lib.flatten(one["params"]).items()} for one in both]
  assert shapes[0] == shapes[1]
  axes = [{path: tuple(value.names) for path, value in
           state_lib.flatten(one["params_axes"]).items()} for one in both]
  assert axes[0] == axes[1]
  logits = [
      module.apply({"params": both[1]["params"]}, *BATCH, enable_dropout=False)
      for module in (ours, theirs)]
  counts = BATCH[2] > 0  # Flaxformer's are 0 where targets are padding
  np.testing.assert_allclose(
      logits[0][counts], logits[1][counts], rtol=0, atol=1e-6)


def test_scanned_layers_are_refused():
  with pytest.raises(errors.UserError, match="SCAN_LAYERS"):
    flaxformer.encoder_decoder(t5.Config(**SIZES, scan_layers=True))


def test_packing_is_refused():
  module = flaxformer.encoder_decoder(t5.Config(**SIZES), PROMPT)
  with pytest.raises(errors.UserError, match="pack = False"):
    module.init(
        jax.random.PRNGKey(0), *BATCH, encoder_segment_ids=BATCH[0],
        decoder_segment_ids=BATCH[1], enable_dropout=False)
