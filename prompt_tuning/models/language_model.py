"""What all language models share towards the engine: loss, scores, decoding.

A model is a Linen module with its vocabularies; subclasses say how a batch
becomes logits and how decoding starts.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from prompt_tuning.methods import interception

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


def cross_entropy(
    logits: Array, targets: Array, label_smoothing: float, z_loss: float
) -> tuple[Array, Array]:
  """T5X's loss per token.

  Args:
    logits: [..., V] float32.
    targets: [...] int32.
    label_smoothing: probability spread evenly over the other V - 1 tokens;
      the loss is shifted so that a perfect prediction still gives 0.
    z_loss: weight of log(Z)^2, which keeps logits from drifting.

  Returns:
    The loss [...] with its z-loss term, and the z-loss term alone [...].
  """
  vocab_size = logits.shape[-1]
  # A sum over the one-hot target (fused by XLA) instead of a gather: the
  # gather's backward pass is a scatter into [B, T, V].
  log_z = jax.nn.logsumexp(logits, axis=-1)
  one_hot = jax.nn.one_hot(targets, vocab_size, dtype=logits.dtype)
  target_logit = jnp.sum(logits * one_hot, axis=-1)
  if label_smoothing:
    low = label_smoothing / (vocab_size - 1)
    high = 1.0 - label_smoothing
    mean_part = low * (jnp.sum(logits, axis=-1) - target_logit)
    entropy = -(high * jnp.log(high)
                + (vocab_size - 1) * low * jnp.log(low + 1e-20))
    loss = log_z - (high * target_logit + mean_part) - entropy
  else:
    loss = log_z - target_logit
  z_term = z_loss * lax.square(log_z)
  return loss + z_term, z_term


class LanguageModel:
  """The part of a model that does not depend on its architecture.

  Subclasses are dataclasses with these attributes, and define `init`,
  `logits` and `decodes`.

  Attributes:
    module: the Linen module.
    output_vocabulary: of the targets; gives `eos_id`.
    label_smoothing: see `cross_entropy`.
    z_loss: see `cross_entropy`.
    loss_normalizing_factor: the summed loss is divided by it; None keeps the
      sum over target tokens (T5X's choice), "num_tokens" gives the mean.
    decode_fn: `beam.beam_search`, or a function with the same arguments, such
      as `sampling.sample`. Options are bound in gin.
    delta: a method that changes the module's projections, such as
      `lora.Lora`; None is the plain module.
  """

  module: nn.Module
  output_vocabulary: Any
  label_smoothing: float
  z_loss: float
  loss_normalizing_factor: float | str | None
  decode_fn: Callable[..., tuple[Array, Array]]
  delta: interception.Delta | None

  def init(self, rng: Array) -> Params:
    """Every variable of the module, for one example of one token."""
    raise NotImplementedError

  def logits(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """Teacher-forced logits of the targets: [B, U, V] float32."""
    raise NotImplementedError

  def decodes(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Array]:
    """Decodes as many tokens as `decoder_target_tokens` has positions.

    Args:
      params: the whole parameter tree.
      batch: see `data.features`; of the targets only the shape counts.
      rng: for a `decode_fn` that samples.

    Returns:
      Tokens [B, D, U], best hypothesis first, and their scores [B, D].
    """
    raise NotImplementedError

  def check_lengths(self, lengths: Mapping[str, int]) -> None:
    """Refuses texts that are too long for the model; T5 takes any.

    Args:
      lengths: most tokens of "inputs" and of "targets".

    Raises:
      UserError: if they do not fit, with the prompt, into its positions.
    """

  def abstract(self) -> tuple[dict, dict]:
    """Shapes and logical axes of the parameters, without computing any.

    Returns:
      The tree of `jax.ShapeDtypeStruct` and the tree of tuples of axis names.
    """
    variables = jax.eval_shape(self.init, jax.random.PRNGKey(0))
    interception.check_targets(self.delta, variables["params"])
    axes = jax.tree.map(
        lambda metadata: tuple(metadata.names), variables["params_axes"],
        is_leaf=lambda leaf: hasattr(leaf, "names"))
    return variables["params"], _without_suffix(axes)

  def loss(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """The loss to minimise, and sums that make up the metrics.

    Args:
      params: the whole parameter tree.
      batch: see `data.features`.
      dropout_rng: None switches dropout off.

    Returns:
      A scalar, and scalars `loss` (summed over tokens), `z_loss`, `correct`
      and `tokens`.
    """
    logits = self.logits(params, batch, dropout_rng)
    targets = batch["decoder_target_tokens"]
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    loss, z_loss = cross_entropy(
        logits, targets, self.label_smoothing, self.z_loss)
    correct = jnp.argmax(logits, axis=-1) == targets
    sums = {
        "loss": jnp.sum(loss * weights),
        "z_loss": jnp.sum(z_loss * weights),
        "correct": jnp.sum(correct * weights),
        "tokens": jnp.sum(weights),
    }
    return sums["loss"], sums

  def score(self, params: Params, batch: Batch) -> Array:
    """Log-probability of each example's targets: [B] float32."""
    logits = self.logits(params, batch)
    loss, _ = cross_entropy(
        logits, batch["decoder_target_tokens"], 0.0, 0.0)
    return -jnp.sum(loss * (batch["decoder_loss_weights"] > 0), axis=-1)

  def predict(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> Array:
    """The best hypothesis of each example: [B, U] int32."""
    return self.decodes(params, batch, rng)[0][:, 0]

  def _init(self, *arguments, **options):
    with interception.applied(self.delta):
      return self.module.init(*arguments, **options)

  def _apply(self, *arguments, **options):
    with interception.applied(self.delta):
      return self.module.apply(*arguments, **options)

  def _search(self, step, cache, rows, length, rng, start_id=None):
    """Runs `decode_fn`; tokens [B, D, U] and scores [B, D].

    `start_id` [B] is what each row feeds first; None is the function's own.
    """
    # Only what samples takes a key, only what has hypotheses the cache's axis.
    offered = {"batch_axis": int(self.module.scan_layers)}
    if rng is not None:
      offered["rng"] = rng
    taken = inspect.signature(self.decode_fn).parameters
    tokens, scores = self.decode_fn(
        step, cache, batch_size=rows, max_length=length,
        eos_id=self.output_vocabulary.eos_id,
        **({} if start_id is None else {"start_id": start_id}),
        **{name: value for name, value in offered.items() if name in taken})
    # Greedy search has one hypothesis and no axis for it.
    return tokens.reshape(rows, -1, length), scores.reshape(rows, -1)


def _without_suffix(axes: Mapping[str, Any]) -> dict:
  """`params_axes` names its leaves `<parameter>_axes`; the tree without."""
  return {
      name.removesuffix("_axes") if isinstance(value, tuple) else name:
          value if isinstance(value, tuple) else _without_suffix(value)
      for name, value in axes.items()
  }
