"""The gin files of training over labels make the models that they name.

Under the original's folders, class and argument names, too.
"""

import pytest

from prompt_tuning import command_line
from prompt_tuning.models import valid_labels

KINDS = {"perceptron": "PerceptronLoss", "cross_entropy": "CrossEntropy",
         "valid_labels": "ValidLabelsOnly"}


def configured(gin, kind, base, *arguments):
  command_line.configure(arguments)
  assert command_line.macro("MODEL").selector.endswith(f"{kind}{base}Model")
  return gin.get_configurable(getattr(valid_labels, f"{kind}{base}Model"))()


@pytest.mark.parametrize("name", KINDS)
def test_t5(clean_gin, name):
  """perceptron_t5_1_1, cross_entropy_t5_1_1 and valid_labels_t5_1_1."""
  folder = "prompt_tuning/configs" if name == "valid_labels" else (
      "prompt_tuning/extended/perceptron/configs")
  flags = ["--gin.LENGTH_NORMALIZE=False"]
  if name == "perceptron":
    flags = ["--gin.models.PerceptronLossEncoderDecoderModel.hinge=0.5",
             "--gin.models.PerceptronLossEncoderDecoderModel."
             "length_normalize=False"]
  model = configured(
      clean_gin, KINDS[name], "EncoderDecoder",
      f"--gin_file={folder}/models/{name}_t5_1_1_prompt.gin",
      "--gin_file=prompt_tuning/configs/models/sizes/small.gin",
      "--gin.VOCABULARY_FILE='spiece.model'", *flags)
  assert model.weighs_labels and not model.length_normalize
  assert model.z_loss == 1e-4 and model.loss_normalizing_factor is None
  assert model.module.prompt_factory().prompt.length == 100
  if name == "perceptron":
    assert model.hinge == 0.5


@pytest.mark.parametrize("name", KINDS)
def test_decoder_only(clean_gin, name):
  """perceptron_causal_lm, cross_entropy_causal_lm, valid_labels_causal_lm."""
  model = configured(
      clean_gin, KINDS[name], "DecoderOnly",
      "--gin_file=prompt_tuning/configs/models/gpt2_prompt.gin",
      f"--gin_file=prompt_tuning/configs/models/{name}_causal_lm.gin",
      "--gin.INITIAL_CHECKPOINT_PATH='gpt2'", "--gin.VOCABULARY=None")
  assert model.weighs_labels and model.length_normalize
  assert model.loss_normalizing_factor == "num_tokens"
  assert model.module.config.embed_dim == 768
  if name == "perceptron":
    assert model.hinge == 0.2
