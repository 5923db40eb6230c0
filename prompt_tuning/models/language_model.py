"""What all language models share towards the engine: loss, scores, decoding.

A model is a Linen module with its vocabularies; subclasses say how a batch
becomes logits and how decoding starts.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.methods import interception
from prompt_tuning.models import losses

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


class LanguageModel:
  """The part of a model that does not depend on its architecture.

  Subclasses are dataclasses with these attributes, and define `init`,
  `hidden` and `decodes`.

  Attributes:
    module: the Linen module; `to_logits` is its last product.
    output_vocabulary: of the targets; gives `eos_id`.
    label_smoothing: see `losses.cross_entropy`.
    z_loss: see `losses.cross_entropy`.
    loss_normalizing_factor: the summed loss is divided by it; None keeps the
      sum over target tokens (T5X's choice), "num_tokens" gives the mean.
    decode_fn: `beam.beam_search`, or a function with the same arguments, such
      as `sampling.sample`. Options are bound in gin.
    delta: a method that changes the module's projections, such as
      `lora.Lora`; None is the plain module.
    instance_encoder: encodes the text of each example for a prompt that
      differs by example, see `data.encodings`; None: such a prompt encodes
      the model's own embedded input.
  """

  # Whether batches must have the labels of their tasks, see
  # `data.valid_labels`; such a model has `label_scores`.
  weighs_labels: ClassVar[bool] = False

  module: nn.Module
  output_vocabulary: Any
  label_smoothing: float
  z_loss: float
  loss_normalizing_factor: float | str | None
  decode_fn: Callable[..., tuple[Array, Array]]
  delta: interception.Delta | None
  instance_encoder: Any

  def init(self, rng: Array) -> Params:
    """Every variable of the module, for one example of one token."""
    raise NotImplementedError

  def hidden(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """Teacher-forced hidden states before the logits: [B, U, H]."""
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
      A scalar, and scalars `loss` (summed over tokens), `z_loss` (of it, not
      there where the loss is no cross-entropy), `correct` and `tokens`.
    """
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    total, tokens = self._token_losses(
        params, batch, weights, self.label_smoothing, self.z_loss,
        dropout_rng)
    return total, {
        "loss": jnp.sum(tokens.loss * weights),
        "z_loss": jnp.sum(tokens.z_loss * weights),
        "correct": jnp.sum(tokens.correct * weights),
        "tokens": jnp.sum(weights),
    }

  def score(self, params: Params, batch: Batch) -> Array:
    """Log-probability of each example's targets: [B] float32."""
    counted = (batch["decoder_loss_weights"] > 0).astype(jnp.float32)
    _, tokens = self._token_losses(params, batch, counted)
    return -jnp.sum(tokens.loss * counted, axis=-1)

  def score_first(self, params: Params, batch: Batch, tokens: Array) -> Array:
    """Log-probability of each token [C] as the first target: [B, C]."""
    logits = self._head(params, self.hidden(params, batch)[:, :1])
    return jax.nn.log_softmax(logits[:, 0], axis=-1)[:, tokens]

  def logits(self, params: Params, batch: Batch) -> Array:
    """Teacher-forced logits of the targets, at once: [B, U, V] float32."""
    return self._head(params, self.hidden(params, batch))

  def predict(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> Array:
    """The best hypothesis of each example: [B, U] int32."""
    return self.decodes(params, batch, rng)[0][:, 0]

  def _unknown_instance(self, rows: int = 1) -> prompts.Instance:
    """Of the examples that parameters are initialised with."""
    if self.instance_encoder is None:
      return prompts.Instance()
    token = jnp.ones((rows, 1), jnp.int32)
    return prompts.Instance(
        encoding=jnp.zeros((rows, self.instance_encoder.width)),
        tokens=token, mask=token > 0)

  def _token_losses(
      self, params, batch, weights, label_smoothing=0.0, z_loss=0.0,
      dropout_rng=None):
    hidden = self.hidden(params, batch, dropout_rng)
    return losses.of_hidden(
        self._head, self._read_by_head(params), hidden,
        batch["decoder_target_tokens"], weights, label_smoothing, z_loss,
        dropout_rng)

  def _read_by_head(self, params):
    """No other parameters: gradients would be made of all that could be read.
    """
    decoder = params["decoder"]
    return ({"decoder": {"logits_dense": decoder["logits_dense"]}}
            if "logits_dense" in decoder
            else {name: params[name]
                  for name in ("token_embedder", "final_logits_bias")
                  if name in params})

  def _head(self, params, hidden, rng=None):
    return self._apply(
        {"params": params}, hidden, method=self.module.to_logits,
        rngs=None if rng is None else {"dropout": rng})

  def _init(self, *arguments, **options):
    with interception.applied(self.delta):
      return self.module.init(*arguments, **options)

  def _apply(self, *arguments, **options):
    with interception.applied(self.delta):
      return self.module.apply(*arguments, **options)

  def _search(
      self, step, cache, rows, length, rng, start_id=None, context=None,
      alike=0):
    """Runs `decode_fn`; tokens [B, D, U] and scores [B, D].

    `start_id` [B] is what each row feeds first; None is the function's own.
    `context` [B, C] is the text so far, if it is more, and `alike` how many
    positions of it the cache holds; see `beam.beam_search`.
    """
    # Only what samples takes a key, only what has hypotheses the cache's axis.
    offered = {"batch_axis": self.module.cache_batch_axis, "context": context,
               "alike": alike}
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
