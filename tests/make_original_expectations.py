"""Writes tests/expectations/original by running google-research/prompt-tuning.

Run it from the repository root where `t5x`, `flaxformer` and the original's
repository (its folder, given as the argument, first on the path) can be
imported; none of them is on PyPI:

    python tests/make_original_expectations.py ../prompt-tuning

The modules are those of the original's gin files in `configs/extended`, in
float32 on a CPU with matmuls in the highest precision. Weights are not stored:
`draw` gives them again from a parameter's path and shape.
"""

import json
import os
import pathlib
import re
import sys
import types
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent / "expectations" / "original"
SIZES = {"NUM_EMBEDDINGS": 128, "EMBED_DIM": 8, "NUM_HEADS": 2, "HEAD_DIM": 4,
         "MLP_DIM": 16, "NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 1}
STARTS, STEPS = (0, 1_100_000), (1, 2, 5)
TASKS = 3
PROMPT_ADAFACTOR = {
    "multiply_by_parameter_scale": False, "weight_decay_rate": 1e-5}

# Lengths 7, 5 and 2; targets of 4, 3 and 2; 1 is EOS.
BATCH = {
    "encoder_input_tokens": np.array([
        [5, 99, 8, 29, 70, 33, 1], [3, 12, 47, 64, 1, 0, 0],
        [58, 1, 0, 0, 0, 0, 0]], np.int32),
    "decoder_input_tokens": np.array(
        [[0, 11, 4, 28], [0, 6, 90, 0], [0, 17, 0, 0]], np.int32),
    "decoder_target_tokens": np.array(
        [[11, 4, 28, 1], [6, 90, 1, 0], [17, 1, 0, 0]], np.int32),
    "decoder_loss_weights": np.array(
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], np.int32)}
# The same texts for a decoder-only model, in T5X's manner: 0 starts them.
DECODER_TARGETS = BATCH["encoder_input_tokens"]
DECODER_INPUTS = np.pad(DECODER_TARGETS, ((0, 0), (1, 0)))[:, :-1]
# Three labels of 3, 2 and 4 tokens after the first two of the texts.
LABEL_TOKENS = np.array(
    [[11, 4, 1, 0], [6, 1, 0, 0], [17, 90, 28, 1]], np.int32)
LABEL_INDEX = np.array([1, 0], np.int32)
# The last ids are T5's sentinels: tasks 2, 0 and 1.
TASK_TOKENS = np.array([[125], [127], [126]], np.int32)

# What is trained, and its Adafactor.
CASES = {
    "per_layer_replace": ("/layers_.*/prompt/", 0.3, PROMPT_ADAFACTOR),
    "per_layer_add": ("/prompt/", 0.3, PROMPT_ADAFACTOR),
    "multitask_add": ("/prompt/", 0.3, PROMPT_ADAFACTOR),
    "ia3": ("ia3_scaling", 3e-3, {})}

# Every way to combine, with prompts of 4: options of the original's classes.
COMBINATIONS = {
    "Add": {}, "Concat": {"task_length": 2},
    "ConcatFeatures": {"shared_features": 5, "task_features": 3},
    "Project": {"shared_features": 5, "task_features": 8}}


def draw(path, shape):
  """The weights of one parameter; they give logits of about 1."""
  random = np.random.RandomState(zlib.crc32(path.encode()))
  array = random.randn(*shape)
  if path.endswith("scale") or "ia3" in path:
    array = 1.0 + 0.2 * array
  elif path.endswith("kernel"):
    array /= np.sqrt(shape[0])
  return array.astype(np.float32)


def batch(case):
  """The batch of one case; in multitask ones a task's token comes first."""
  if not case.startswith("multitask"):
    return BATCH
  tokens = np.concatenate(
      [TASK_TOKENS, BATCH["encoder_input_tokens"]], axis=1)
  return {**BATCH, "encoder_input_tokens": tokens}


def _include(name):
  folder = "prompt_tuning/configs/extended/architectures"
  return f"include '{folder}/{name}_t5_1_1_flaxformer.gin'\n"


_PROMPT = """
PROMPT = @train_prompts.Prompt
train_prompts.Prompt.prompt = @prompts.Prompt()
prompts.Prompt.length = %PROMPT_LENGTH
"""
_PER_LAYER = """
from prompt_tuning import prompts
from prompt_tuning.extended.train import per_layer
from prompt_tuning.train import prompts as train_prompts
""" + _include("per_layer_prompt_encoder") + """
PROMPT_LENGTH = 3
""" + _PROMPT + """
PER_LAYER_PROMPT = @per_layer/train_prompts.Prompt
per_layer/train_prompts.Prompt.prompt = @prompts.Prompt()
per_layer/train_prompts.Prompt.combine = @per_layer."""
_CONFIGS = {
    "per_layer_replace": _PER_LAYER + "replace_prompt",
    "per_layer_add": _PER_LAYER + "add_prompt",
    "multitask_add": f"""
from prompt_tuning.extended import multitask_prompts
from prompt_tuning.extended.train import multitask_prompts as train_prompts
{_include("multi_task_prompt_encoder")}
PROMPT_LENGTH = 4
PROMPT = @train_prompts.MultiTaskPrompt
train_prompts.MultiTaskPrompt.prompt = @multitask_prompts.AddMultiTaskPrompt()
multitask_prompts.AddMultiTaskPrompt:
  length = 4
  num_tasks = {TASKS}
  to_task_idx = @multitask_prompts.sentinel_to_task
multitask_prompts.sentinel_to_task.vocab_size = 128
""",
    "ia3": _include("ia3")}


# Their gin files have no decoder-only model. This one, with rotations instead
# of relative biases, is a small Llama.
_PER_LAYER_DECODER = """
from flax import linen
from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import dense
from flaxformer.components import embedding
from flaxformer.components import layer_norm
from flaxformer.components.attention import dense_attention
from prompt_tuning import masks
from prompt_tuning import prompts
from prompt_tuning.extended.train import per_layer
from prompt_tuning.train import layers
from prompt_tuning.train import prompts as train_prompts
include 'prompt_tuning/configs/architectures/t5_1_1_flaxformer.gin'
PROMPT_LENGTH = 3
""" + _PROMPT + """
ARCHITECTURE = @layers.PromptDecoderOnly()
layers.PromptDecoderOnly:
  decoder_factory = @layers.PromptDecoder
  decoder_mask_factory = @masks.create_prompt_decoder_only_mask
  dtype = 'float32'
masks.create_prompt_decoder_only_mask.prompt_length = %PROMPT_LENGTH
masks.add_fake_prompt.prompt_length = %PROMPT_LENGTH
layers.PromptDecoder:
  num_layers = 2
  layer_factory = @per_layer.PromptDecoderLayer
  token_embedder_factory = @embedding.Embed
  dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  output_logits_factory = @output_logits/dense.DenseGeneral
  prompt_factory = %PROMPT
  add_fake_prompt_factory = @masks.add_fake_prompt
  dtype = 'float32'
per_layer.PromptDecoderLayer:
  self_attention = @dense_attention.MultiHeadDotProductAttention()
  encoder_decoder_attention = None
  mlp = @dense.MlpBlock()
  dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  prompt_factory = @per_layer/train_prompts.Prompt
dense_attention.MultiHeadDotProductAttention:
  use_rotary_embedding = True
  rescale_logits = True
dense.MlpBlock.activations = ('silu', 'linear')
per_layer/train_prompts.Prompt.prompt = @prompts.Prompt()
per_layer/train_prompts.Prompt.combine = @per_layer."""


def module_of(config, folder):
  """The original's module as gin makes it."""
  import gin

  gin.clear_config()
  gin.add_config_file_search_path(folder)
  macros = "".join(f"{name} = {value}\n" for name, value in SIZES.items())
  gin.parse_config(
      f"from __gin__ import dynamic_registration\n{config}\n{macros}"
      "ACTIVATION_DTYPE = 'float32'\nDROPOUT_RATE = 0.0\n")
  reference = gin.query_parameter("ARCHITECTURE/gin.macro.value")
  return reference.scoped_configurable_fn()


def outputs(case, folder):
  """Everything that is kept of one case."""
  from flax import traverse_util
  import jax
  from t5x import models

  module = module_of(_CONFIGS[case], folder)
  vocabulary = types.SimpleNamespace(eos_id=1)
  model = models.EncoderDecoderModel(
      module, vocabulary, vocabulary, optimizer_def=None, z_loss=1e-4)
  one = np.ones((1, 8), np.int32)
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.PRNGKey(0), one, one, one, enable_dropout=False))["params"]
  shapes = {path: leaf.shape for path, leaf in
            traverse_util.flatten_dict(shapes, sep="/").items()}
  params = {path: draw(path, shape) for path, shape in shapes.items()}
  pattern, rate, options = CASES[case]
  trained = [path for path in params if re.search(pattern, path)]
  examples = batch(case)

  def loss(trainable):
    whole = traverse_util.unflatten_dict({**params, **trainable}, sep="/")
    return model.loss_fn(whole, examples, None)[0], model._compute_logits(
        whole, examples, None)

  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
  start = {path: params[path] for path in trained}
  (value, logits), gradients = gradient(start)
  kept = {"shapes": json.dumps(shapes), "loss": value,
          "logits": logits[examples["decoder_loss_weights"] > 0]}
  kept |= {f"grad/{path}": g for path, g in gradients.items()}
  for first in STARTS:
    kept |= {f"adafactor/start{first}/{name}": array for name, array in
             steps(gradient, start, first, rate, options)}
  return kept


def steps(gradient, values, first, rate, options):
  """Yields what T5X's Adafactor makes of the parameters."""
  from flax import traverse_util
  import jax
  from t5x import adafactor, optimizers

  definition = adafactor.Adafactor(decay_rate=0.8, step_offset=0, **options)
  tree = traverse_util.unflatten_dict(values, sep="/")
  state = optimizers.OptimizerState(
      np.int32(first), definition.init_state(tree).param_states)
  hyper = definition.hyper_params.replace(learning_rate=np.float32(rate))
  update = jax.jit(lambda tree, state, gradients: definition.apply_gradient(
      hyper, tree, state, traverse_util.unflatten_dict(gradients, sep="/")))
  for step in range(1, max(STEPS) + 1):
    tree, state = update(tree, state, gradient(values)[1])
    values = traverse_util.flatten_dict(tree, sep="/")
    if step in STEPS:
      for path, value in values.items():
        yield f"step{step}/{path}", value


def combined():
  """What the original's multi-task prompts give, by combination."""
  import jax
  from prompt_tuning.extended import multitask_prompts as theirs

  tokens = np.concatenate(
      [np.array([[2], [0], [1]]), BATCH["encoder_input_tokens"]], axis=1)
  embedded = draw("embedded", (*tokens.shape, 8))
  kept = {}
  for name, options in COMBINATIONS.items():
    module = getattr(theirs, f"{name}MultiTaskPrompt")(
        length=4, num_tasks=TASKS, **options)
    shapes = jax.eval_shape(lambda m=module: m.init(
        jax.random.PRNGKey(0), tokens, embedded))["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf, name=name: draw(
            name + "/" + "/".join(key.key for key in path), leaf.shape),
        shapes)
    kept[name] = module.apply({"params": params}, tokens, embedded)
  return kept


def valid_labels(folder):
  """Scores, losses and gradients of the models that weigh labels."""
  from flax import traverse_util
  import jax
  from prompt_tuning.extended.perceptron.train import models as theirs

  folder_of_gin = "prompt_tuning/configs/architectures"
  module = module_of(f"""
from prompt_tuning import prompts
from prompt_tuning.train import prompts as train_prompts
include '{folder_of_gin}/prompt_encoder_t5_1_1_flaxformer.gin'
PROMPT_LENGTH = 3
{_PROMPT}""", folder)
  count, repeated = len(LABEL_INDEX), len(LABEL_TOKENS)
  tokens = np.repeat(
      BATCH["encoder_input_tokens"][:count, None], repeated, axis=1)
  labels = np.repeat(LABEL_TOKENS[None], count, axis=0)
  examples = {
      "encoder_input_tokens": tokens,
      "decoder_input_tokens": np.pad(
          labels, ((0, 0), (0, 0), (1, 0)))[..., :-1],
      "decoder_target_tokens": labels,
      "decoder_loss_weights": (labels > 0).astype(np.int32),
      "is_correct": np.arange(repeated) == LABEL_INDEX[:, None]}
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.PRNGKey(0), tokens[0], labels[0], labels[0],
      enable_dropout=False))["params"]
  params = {path: draw(path, leaf.shape) for path, leaf in
            traverse_util.flatten_dict(shapes, sep="/").items()}
  vocabulary = types.SimpleNamespace(eos_id=1)
  common = {"module": module, "input_vocabulary": vocabulary,
            "output_vocabulary": vocabulary, "optimizer_def": None,
            "z_loss": 1e-4}
  models = {
      "cross_entropy": theirs.CrossEntropyEncoderDecoderModel(True, **common),
      "smoothed": theirs.CrossEntropyEncoderDecoderModel(
          False, label_smoothing=0.1, **common),
      "perceptron": theirs.PerceptronLossEncoderDecoderModel(
          0.0, True, **common),
      "hinge": theirs.PerceptronLossEncoderDecoderModel(0.2, False, **common)}
  kept, path = {}, "encoder/prompt/prompt/prompt"
  for name, model in models.items():

    def loss(prompt, model=model):
      whole = traverse_util.unflatten_dict({**params, path: prompt}, sep="/")
      return model.loss_fn(whole, examples, None)[0], model._compute_logits(
          whole, examples, None)

    (value, scores), gradient = jax.jit(
        jax.value_and_grad(loss, has_aux=True))(params[path])
    kept |= {f"{name}/loss": value, f"{name}/scores": scores,
             f"{name}/grad": gradient}
  whole = traverse_util.unflatten_dict(params, sep="/")
  kept["predicted"] = models["perceptron"].predict_batch_with_aux(
      whole, examples)[0]
  return kept


def per_layer_decoder(folder):
  """Logits and gradients of the per-layer prompts of a decoder-only model."""
  from flax import traverse_util
  import jax

  tokens, targets = DECODER_INPUTS, DECODER_TARGETS
  kept = {}
  for combine in ("replace", "add"):
    module = module_of(f"{_PER_LAYER_DECODER}{combine}_prompt", folder)
    shapes = jax.eval_shape(lambda m=module: m.init(
        jax.random.PRNGKey(0), tokens, targets,
        enable_dropout=False))["params"]
    params = {path: draw(path, leaf.shape) for path, leaf in
              traverse_util.flatten_dict(shapes, sep="/").items()}

    def loss(trained, params=params, module=module):
      whole = traverse_util.unflatten_dict({**params, **trained}, sep="/")
      logits = module.apply(
          {"params": whole}, tokens, targets, enable_dropout=False)
      logits = logits[:, -tokens.shape[1]:]
      picked = jax.nn.log_softmax(logits)[
          np.arange(len(tokens))[:, None],
          np.arange(tokens.shape[1])[None], targets]
      return -(picked * (targets > 0)).sum(), logits

    trained = {path: params[path] for path in params if "/prompt/" in path}
    (value, logits), gradients = jax.jit(
        jax.value_and_grad(loss, has_aux=True))(trained)
    kept |= {f"{combine}/loss": value,
             f"{combine}/logits": logits[targets > 0]}
    kept |= {f"{combine}/grad/{path}": g for path, g in gradients.items()}
  return kept | {"shapes": json.dumps(
      {path: array.shape for path, array in params.items()})}


def wayward():
  """The original's wayward loss and its gradient, on a prompt of 3."""
  import flax
  import jax

  # Only a type annotation needs what flax no longer has.
  flax.optim = types.ModuleType("flax.optim")
  flax.optim.OptimizerDef = object
  sys.modules["flax.optim"] = flax.optim
  from prompt_tuning.extended.train import wayward as theirs

  x, y = (draw(name, (3, 8)) for name in ("continuous", "discrete"))
  value, gradient = jax.value_and_grad(theirs.squared_l2_distance)(x, y)
  return {"distance": value, "grad": gradient}


def main():
  folder = os.path.abspath(sys.argv[1])
  sys.path.insert(0, folder)
  os.chdir(folder)  # gin looks here first, and we have files of the same names
  import jax

  FOLDER.mkdir(exist_ok=True)
  with jax.default_matmul_precision("highest"):
    made = {case: outputs(case, folder) for case in CASES}
    made |= {"multitask_combined": combined(), "wayward": wayward(),
             "per_layer_decoder": per_layer_decoder(folder),
             "valid_labels": valid_labels(folder)}
  for name, kept in made.items():
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in kept.items()})
    print(f"{path}: {len(kept)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
