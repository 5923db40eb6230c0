"""Models that weigh the labels of a task against each other.

A label's score is the log-likelihood of its tokens, end-of-sequence included,
a token if `length_normalize`; the prediction is the label that scores best.
What is trained is, by class, the likelihood of the right label as ever
(`ValidLabelsOnly…`), the cross-entropy over the labels' scores
(`CrossEntropy…`), or that the right label beats all others by a margin
(`PerceptronLoss…`): the original's `extended/perceptron`, which tells of the
three on seven tasks.

    MODEL = @valid_labels.PerceptronLossEncoderDecoderModel()

The original repeats an example's inputs for each label; here the encoder reads
them once. Batches are those of `data.valid_labels`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.models import decoder_only, encoder_decoder, losses

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]

# The score of what only fills up to C labels: below all others, yet its
# difference to them is finite.
_NO_LABEL = -1e9


def label_scores(
    log_likelihoods: Array, weights: Array, length_normalize: bool
) -> Array:
  """Scores of labels.

  Args:
    log_likelihoods: [B, C, U] of tokens.
    weights: [B, C, U], 0 on padding; a label without any is none.
    length_normalize: the mean over tokens, not the sum.

  Returns:
    [B, C] float32.
  """
  weights = weights.astype(jnp.float32)
  lengths = jnp.sum(weights, axis=-1)
  scores = jnp.sum(log_likelihoods * weights, axis=-1)
  if length_normalize:
    scores = scores / jnp.maximum(lengths, 1.0)
  return jnp.where(lengths > 0, scores, _NO_LABEL)


def perceptron_loss(scores: Array, right: Array, hinge: float) -> Array:
  """By how much the best wrong label comes within `hinge` of the right one.

    max(0, hinge + max_{c != right} score_c - score_right)

  (the README of the original's `extended/perceptron`; its code takes the
  maximum over all labels, the right one too, so that its hinge adds a constant
  to the loss and moves nothing. Without a hinge both are the same.)

  Args:
    scores: [B, C], two or more labels.
    right: [B] int32, which label is right.
    hinge: the margin.

  Returns:
    [B].
  """
  is_right = jnp.arange(scores.shape[-1]) == right[:, None]
  gold = jnp.sum(jnp.where(is_right, scores, 0.0), axis=-1)
  best_wrong = jnp.max(jnp.where(is_right, -jnp.inf, scores), axis=-1)
  return jnp.maximum(0.0, hinge + best_wrong - gold)


@dataclasses.dataclass(frozen=True)
class _OverLabels:
  """What the models have in common, whatever their architecture.

  Attributes:
    length_normalize: see `label_scores`.
  """

  weighs_labels: ClassVar[bool] = True

  length_normalize: bool = True

  def label_scores(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """The score of each label after each example: [B, C] float32.

    Args:
      params: the whole parameter tree.
      batch: with the arrays of `data.valid_labels`.
      dropout_rng: None switches dropout off.
    """
    tokens = batch["label_tokens"]
    hidden = self._label_hidden(params, batch, dropout_rng)  # [B * C, U, H]
    found = losses.log_likelihoods(
        self._head, self._read_by_head(params), hidden,
        tokens.reshape(-1, tokens.shape[-1]), dropout_rng)
    return label_scores(
        found.reshape(tokens.shape), batch["label_weights"],
        self.length_normalize)

  def _of_scores(self, params, batch, dropout_rng, loss_fn):
    """The loss and its sums, an example being what a token is elsewhere.

    `loss_fn` of scores [B, C] and right labels [B] gives losses [B] and what
    of them is the z-loss [B], or None if they are no cross-entropies.
    """
    scores = self.label_scores(params, batch, dropout_rng)
    right = batch["label_index"]
    # Rows that only fill a batch have no target, and some have no label.
    is_real = jnp.any(batch["decoder_loss_weights"] > 0, axis=-1)
    weights = (is_real & (right >= 0)).astype(jnp.float32)
    loss, z_loss = loss_fn(scores, right)
    total = jnp.sum(loss * weights)
    sums = {
        "loss": total,
        "correct": jnp.sum((jnp.argmax(scores, axis=-1) == right) * weights),
        "tokens": jnp.sum(weights),
    }
    return total, sums if z_loss is None else {
        **sums, "z_loss": jnp.sum(z_loss * weights)}


class _CrossEntropy:
  """The cross-entropy of the right label among all labels."""

  def loss(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """See `LanguageModel.loss`; sums are over examples."""
    return self._of_scores(
        params, batch, dropout_rng,
        lambda scores, right: losses.cross_entropy(
            scores, right, self.label_smoothing, self.z_loss))


@dataclasses.dataclass(frozen=True)
class _Perceptron:
  """The perceptron's loss.

  Attributes:
    hinge: see `perceptron_loss`.
  """

  hinge: float = 0.0

  def loss(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """See `LanguageModel.loss`; sums are over examples."""

    return self._of_scores(
        params, batch, dropout_rng, lambda scores, right: (
            perceptron_loss(scores, right, self.hinge), None))


# ------------------------------------------------------------ encoder-decoders


@dataclasses.dataclass(frozen=True)
class ValidLabelsOnlyEncoderDecoderModel(
    _OverLabels, encoder_decoder.EncoderDecoderModel):
  """Trained token by token, as ever; only labels are predicted."""

  def _label_hidden(self, params, batch, dropout_rng):
    inputs, targets = batch["encoder_input_tokens"], batch["label_tokens"]
    count = targets.shape[1]
    options = {
        "enable_dropout": dropout_rng is not None,
        "rngs": None if dropout_rng is None else {"dropout": dropout_rng}}
    encoded = self._apply(
        {"params": params}, inputs, method=self.module.encode,
        instance=prompts.Instance(encoding=batch.get("instance_encodings")),
        **options)
    shifted = jnp.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    return self._apply(
        {"params": params}, jnp.repeat(encoded, count, axis=0),
        jnp.repeat(inputs, count, axis=0),
        shifted.reshape(-1, shifted.shape[-1]),
        method=self.module.decoder_hidden, **options)


@dataclasses.dataclass(frozen=True)
class CrossEntropyEncoderDecoderModel(
    _CrossEntropy, ValidLabelsOnlyEncoderDecoderModel):
  """Trained by the cross-entropy over labels."""


@dataclasses.dataclass(frozen=True)
class PerceptronLossEncoderDecoderModel(
    _Perceptron, ValidLabelsOnlyEncoderDecoderModel):
  """Trained by the perceptron's loss over labels."""


# --------------------------------------------------------- decoder-only models


@dataclasses.dataclass(frozen=True)
class ValidLabelsOnlyDecoderOnlyModel(
    _OverLabels, decoder_only.DecoderOnlyModel):
  """Trained token by token, as ever; only labels are predicted."""

  def _label_hidden(self, params, batch, dropout_rng):
    targets = batch["label_tokens"]
    count, length = targets.shape[1:]
    # Each label where the target is, behind the inputs.
    tokens = batch["decoder_input_tokens"][:, None]  # [B, 1, T + U]
    starts = batch["decoder_target_positions"][:, None, :1] + 1
    places = jnp.arange(tokens.shape[-1]) - starts  # [B, 1, T + U]
    behind = jnp.take_along_axis(
        targets, jnp.clip(places, 0, length - 1), axis=-1)  # [B, C, T + U]
    tokens = jnp.where(places < 0, tokens, behind)
    same = {
        name: jnp.repeat(batch[name], count, axis=0)
        for name in ("decoder_target_positions", "instance_encodings")
        if name in batch}
    return self.hidden(params, {
        "decoder_input_tokens": tokens.reshape(-1, tokens.shape[-1]), **same},
        dropout_rng)


@dataclasses.dataclass(frozen=True)
class CrossEntropyDecoderOnlyModel(
    _CrossEntropy, ValidLabelsOnlyDecoderOnlyModel):
  """Trained by the cross-entropy over labels."""


@dataclasses.dataclass(frozen=True)
class PerceptronLossDecoderOnlyModel(
    _Perceptron, ValidLabelsOnlyDecoderOnlyModel):
  """Trained by the perceptron's loss over labels."""
