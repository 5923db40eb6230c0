"""Which parameters are the uppermost layers of a decoder-only model.

Tuning them alone is a baseline of Li & Liang 2021 (arXiv 2101.00190, 5.2).
"""

from prompt_tuning import errors
from prompt_tuning.models import causal_lm


def top_layers(
    module: causal_lm.CausalLM, count: int = 2, with_embedding: bool = True
) -> list[str]:
  """Patterns for TRAINABLE_REGEX.

  Args:
    module: the model.
    count: how many layers are trained besides the last norm; may be 0.
    with_embedding: whether what makes the logits is trained too: the embedding
      table where it is tied, a layer of its own where not.

  Returns:
    One pattern for each layer, the norm, and what makes the logits.

  Raises:
    UserError: if there are not so many layers, they are stacked in one array,
      or the model is no decoder-only one.
  """
  config = module.config
  if not isinstance(config, causal_lm.Config):
    raise errors.UserError(
        "top_layers is for decoder-only models: write the paths of other "
        "models' parameters into TRAINABLE_REGEX.")
  if config.scan_layers:
    raise errors.UserError(
        "SCAN_LAYERS is True, but top_layers trains some layers and not the "
        "others: set it to False.")
  if type(count) is not int or not 0 <= count <= config.num_layers:
    raise errors.UserError(
        f"TOP_LAYERS (top_layers.count) is {count!r}: it must be a whole "
        f"number from 0 to the model's {config.num_layers}.")
  found = ["decoder/decoder_norm/.*"] + [
      f"decoder/layers_{n}/.*"
      for n in range(config.num_layers - count, config.num_layers)]
  if with_embedding:
    found.append("token_embedder/.*" if config.tie_logits
                 else "decoder/logits_dense/.*")
  return found
