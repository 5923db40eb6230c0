"""T5X's models around our modules."""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import flax.linen as nn
import gin
import seqio
from t5x import decoding, models, optimizers

from prompt_tuning import errors
from prompt_tuning.decoding import beam, greedy, sampling
from prompt_tuning.methods import interception
from prompt_tuning.models import causal_lm, encoder_decoder
from prompt_tuning.models import decoder_only as our_decoder_only
from prompt_tuning.t5x import decoder_only, vocabularies


def from_engine(
    model: (encoder_decoder.EncoderDecoderModel
            | our_decoder_only.DecoderOnlyModel | models.BaseTransformerModel),
    optimizer_def: optimizers.OptimizerDef | None = None,
) -> models.BaseTransformerModel:
  """The model that a models/ file describes, as one of T5X's.

  Module, vocabularies, loss, decoding and delta are the engine's; so a models/
  file says nothing about who trains it.

  Args:
    model: the engine's; one of T5X's own is returned as it is.
    optimizer_def: None where nothing is trained.

  Returns:
    A `t5x.models.EncoderDecoderModel` or `DecoderOnlyModel`.

  Raises:
    UserError: for a model, vocabulary or decoding that T5X does not have.
  """
  if isinstance(model, models.BaseTransformerModel):
    return model
  # A subclass has a loss of its own, which T5X would not know of.
  if type(model) not in (
      encoder_decoder.EncoderDecoderModel, our_decoder_only.DecoderOnlyModel):
    raise errors.UserError(
        f"MODEL is a {type(model).__name__}, and T5X trains with its own loss "
        "alone: train it with python -m prompt_tuning.train.")
  if model.instance_encoder is not None:
    raise errors.UserError(
        "ENCODER is set, and T5X's batches have no encodings: leave it out, so "
        "that prompts are made of the embedded input, or train with python -m "
        "prompt_tuning.train.")
  decode_fn, num_decodes = _decoding(model.decode_fn)
  options = {
      "optimizer_def": optimizer_def,
      "label_smoothing": model.label_smoothing,
      "z_loss": model.z_loss,
      "loss_normalizing_factor": _NORMALIZING.get(
          model.loss_normalizing_factor, model.loss_normalizing_factor)}
  if isinstance(model, our_decoder_only.DecoderOnlyModel):
    module = model.module
    if isinstance(module, causal_lm.CausalLM):  # else Flaxformer's
      module = decoder_only.DecoderOnly(module)
    return models.DecoderOnlyModel(
        module=_intercepted(module, model.delta),
        # The name of T5X's option; our module takes it for what is an input.
        inputs_bidirectional_attention=getattr(module, "tells_inputs", False),
        vocabulary=vocabularies.as_seqio(model.vocabulary),
        feature_converter_cls=functools.partial(
            seqio.DecoderFeatureConverter, bos_id=_first(model.vocabulary)),
        decode_fn=functools.partial(_with_beams, decode_fn, num_decodes),
        **options)
  return models.EncoderDecoderModel(
      module=_intercepted(model.module, model.delta),
      input_vocabulary=vocabularies.as_seqio(model.input_vocabulary),
      output_vocabulary=vocabularies.as_seqio(model.output_vocabulary),
      decode_fn=decode_fn,
      default_decoder_params=models.DecoderParams(num_decodes=num_decodes),
      **options)


def _first(vocabulary) -> int:
  """What T5X puts before every text: the tokenizer's own first id, if any."""
  front = vocabulary.encode_inputs("")
  return front[0] if len(front) == 1 else 0


def _with_beams(decode_fn, count: int, *, num_decodes: int = 1, **arguments):
  """T5X's decoder-only model has no default number of hypotheses."""
  return decode_fn(num_decodes=max(count, num_decodes), **arguments)


_NORMALIZING = {"num_tokens": "NUM_REAL_TARGET_TOKENS"}


def _decoding(decode_fn: Callable[..., Any]) -> tuple[Callable[..., Any], int]:
  """T5X's function for one of ours, and how many hypotheses it has."""
  function, options = _options(decode_fn)
  if function is beam.beam_search:
    if options["rules"] != "t5x" or options["penalty"] is not beam.t5x_brevity:
      raise errors.UserError(
          "beam_search has the rules or the penalty of Hugging Face, which T5X "
          "does not have: leave both out.")
    return (functools.partial(decoding.beam_search, alpha=options["alpha"]),
            options["num_beams"])
  if function is greedy.greedy:
    return functools.partial(decoding.temperature_sample, temperature=0.0), 1
  if function is sampling.sample:
    return functools.partial(
        decoding.temperature_sample, temperature=options["temperature"],
        topk=options["top_k"],
        topp=options["top_p"] if options["top_p"] < 1 else 0.0), 1
  raise errors.UserError(
      f"T5X has no decoding like {getattr(function, '__name__', function)}: "
      "take a file of models/decoding.")


def _options(function) -> tuple[Callable[..., Any], dict[str, Any]]:
  """The function itself, and its options as partials and gin bind them."""
  given = {}
  if isinstance(function, functools.partial):
    function, given = function.func, function.keywords
  plain = inspect.unwrap(function)
  if plain is not function:  # gin's, which fills in what it has bound
    given = {**gin.get_bindings(function), **given}
  defaults = {name: parameter.default for name, parameter in
              inspect.signature(plain).parameters.items()}
  return plain, {**defaults, **given}


def _intercepted(module: nn.Module, delta: interception.Delta | None):
  return module if delta is None else _Intercepted(module, delta)


class _Intercepted:
  """A Linen module whose every call goes through a delta (LoRA, IA3)."""

  def __init__(self, module: nn.Module, delta: interception.Delta):
    self._module = module
    self._delta = delta

  def init(self, *arguments, **options):
    with interception.applied(self._delta):
      return self._module.init(*arguments, **options)

  def apply(self, *arguments, **options):
    with interception.applied(self._delta):
      return self._module.apply(*arguments, **options)

  def __getattr__(self, name):
    return getattr(self._module, name)
