"""Every gin file of a decoder-only model builds without any memory.

Oracles: the parameter counts of the published checkpoints, and the options
that their config.json files state.
"""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import command_line, errors, prompts
from prompt_tuning.checkpoints import base_config, families, hugging_face
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.models import decoder_only
from prompt_tuning.train import loop, settings, setup
from prompt_tuning.train import state as state_lib

CONFIGS = command_line.PACKAGE / "configs"
PATH = "--gin.INITIAL_CHECKPOINT_PATH='base'"
# Layers that are traced once: the counts are the same, in a tenth of the time.
SCAN = "--gin.SCAN_LAYERS=True"


@pytest.fixture
def build(clean_gin):
  """Makes the model of gin files, named without `.gin`, and flags."""

  def read(*arguments):
    clean_gin.clear_config()
    command_line.configure([
        a if a.startswith("--") else f"--gin_file={CONFIGS}/{a}.gin"
        for a in arguments])
    return clean_gin.get_configurable(decoder_only.DecoderOnlyModel)()

  return read


def count(shapes):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def gpt2(layers, heads, width):
  return {"model_type": "gpt2", "n_layer": layers, "n_head": heads,
          "n_embd": width, "vocab_size": 50257, "n_positions": 1024,
          "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}


def llama(layers, heads, width, hidden, vocab, positions, **more):
  return {"model_type": "llama", "num_hidden_layers": layers,
          "num_attention_heads": heads, "hidden_size": width,
          "intermediate_size": hidden, "vocab_size": vocab,
          "max_position_embeddings": positions, "hidden_act": "silu",
          "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
          "rope_theta": 10000.0, "rope_scaling": None} | more


def codegen(layers, width, rotary_dim, **more):
  return {"model_type": "codegen", "n_layer": layers, "n_head": 16,
          "n_embd": width, "n_positions": 2048, "rotary_dim": rotary_dim,
          "vocab_size": 51200, "activation_function": "gelu_new",
          "layer_norm_epsilon": 1e-5} | more


LLAMA_3 = llama(32, 32, 4096, 14336, 128256, 8192, num_key_value_heads=8,
                rope_theta=500000.0)

# The parameters of the base model, and what its config.json states of it.
PUBLISHED = {
    "distilgpt2": (81_912_576, gpt2(6, 12, 768)),
    "gpt2": (124_439_808, gpt2(12, 12, 768)),
    "gpt2_medium": (354_823_168, gpt2(24, 16, 1024)),
    "gpt2_large": (774_030_080, gpt2(36, 20, 1280)),
    "gpt2_xl": (1_557_611_200, gpt2(48, 25, 1600)),
    "llama_3_8b": (8_030_261_248, LLAMA_3),
    "llama_3_1_8b": (8_030_261_248, LLAMA_3 | {
        "max_position_embeddings": 131072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}),
    "deepseek_coder_1_3b": (1_346_471_936, llama(
        24, 16, 2048, 5504, 32256, 16384, rms_norm_eps=1e-6,
        rope_theta=100000.0,
        rope_scaling={"type": "linear", "factor": 4.0})),
    "deepseek_coder_7b_v1_5": (6_910_365_696, llama(
        30, 32, 4096, 11008, 102400, 4096, rms_norm_eps=1e-6)),
    "smollm2_135m": (134_515_008, llama(
        30, 9, 576, 1536, 49152, 8192, num_key_value_heads=3,
        rope_theta=100000.0, tie_word_embeddings=True)),
    "phi_2": (2_779_683_840, {
        "model_type": "phi", "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_size": 2560,
        "intermediate_size": 10240, "vocab_size": 51200,
        "max_position_embeddings": 2048, "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0, "tie_word_embeddings": False}),
    "phi_3_mini_4k": (3_821_079_552, llama(
        32, 32, 3072, 8192, 32064, 4096, model_type="phi3",
        num_key_value_heads=32, sliding_window=2047)),
    "codegen_350m": (356_712_448, codegen(20, 1024, 32)),
    "codegen2_3_7b": (3_641_174_016, codegen(
        16, 4096, 64, head_dim=256)),
    "bloomz_560m": (559_214_592, {
        "model_type": "bloom", "n_layer": 24, "num_attention_heads": 16,
        "n_embed": 1024, "vocab_size": 250880, "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(build, name):
  model = build(f"models/{name}_prompt", PATH, SCAN)
  shapes, axes = model.abstract()
  assert jax.tree.structure(shapes) == jax.tree.structure(
      axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  prompt = shapes["decoder"].pop("prompt")["prompt"]["prompt"]
  assert prompt.shape == (20, model.module.config.embed_dim)
  assert count(shapes) == PUBLISHED[name][0]


def stated(name):
  content = PUBLISHED[name][1]
  family = families.of_type(content["model_type"], "config.json")
  return family.Config(**family.read_config(
      config_json.ConfigJson("config.json", content)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_options_are_the_published_ones(build, name):
  """The gin file's model is the one that config.json describes."""
  config = build(f"models/{name}", PATH).module.config
  theirs = stated(name)

  class Weights:
    path = "base"
    config = vars(theirs)

  base_config.check(Weights, config)
  assert config.max_positions == theirs.max_positions


def test_of_another_option_is_refused(build):
  """The same shapes, rotated otherwise: nothing else would tell."""
  config = build("models/deepseek_coder_1_3b", PATH).module.config

  class Weights:
    path = "theirs"
    config = vars(stated("deepseek_coder_1_3b"))

  base_config.check(Weights, config)
  for name, value in (("rope_theta", 10000.0), ("rope_scaling", None),
                      ("sliding_window", 512), ("num_kv_heads", 4)):
    with pytest.raises(
        errors.UserError, match=f"theirs states {name} = .*{value}"):
      base_config.check(Weights, dataclasses.replace(config, **{name: value}))
  free = dataclasses.replace(
      config, dtype="bfloat16", remat="full", scan_layers=True,
      max_positions=64)
  base_config.check(Weights, free)


TINY = ["--gin.NUM_LAYERS=2", "--gin.NUM_HEADS=2", "--gin.HEAD_DIM=4",
        "--gin.EMBED_DIM=8", "--gin.MLP_DIM=16", "--gin.NUM_EMBEDDINGS=64",
        "--gin.VOCABULARY=None", PATH]
FAMILIES = {"gpt2": [], "llama": ["MAX_POSITIONS=64"],
            "phi": ["MAX_POSITIONS=64", "ROTARY_DIM=2"],
            "codegen": ["ROTARY_DIM=2"], "bloom": []}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_take_any_size(build, family):
  """With architectures/causal_lm.gin inside, and models/causal_lm.gin."""
  model = build(
      f"architectures/{family}", "models/causal_lm", "models/causal_lm_prompt",
      *TINY, *(f"--gin.{flag}" for flag in FAMILIES[family]),
      "--gin.PROMPT_LENGTH=3")
  params, _ = model.abstract()
  prompt = params["decoder"]["prompt"]["prompt"]["prompt"]
  assert prompt.shape == (3, 8)
  assert set(params["decoder"]) >= {"layers_0", "layers_1", "decoder_norm"}


@pytest.mark.parametrize("combine", [
    "prefix_prompt", "prefix_prompt_after_bos"])
def test_texts_longer_than_the_positions_are_refused(build, combine):
  model = build(
      "architectures/llama", "models/causal_lm", "models/causal_lm_prompt",
      *TINY, "--gin.MAX_POSITIONS=64", "--gin_bindings=train_prompts.Prompt."
      f"combine = @train_prompts.{combine}")
  model.check_lengths({"inputs": 40, "targets": 4})
  with pytest.raises(errors.UserError, match="64 positions: .*PROMPT_LENGTH"):
    model.check_lengths({"inputs": 40, "targets": 5})


@pytest.mark.parametrize("ids, rows, fits", [
    (50257, 50257, True),  # GPT-2
    (50295, 51200, True),  # CodeGen, Phi-2
    (100015, 102400, True),  # DeepSeek-Coder 7B v1.5
    (50258, 50257, False), (50257, 102400, False), (259, 50257, False)])
def test_vocabulary_and_embedding_table(ids, rows, fits):
  vocabulary = types.SimpleNamespace(vocab_size=ids)
  if fits:
    return setup.check_vocabulary(vocabulary, rows)
  with pytest.raises(errors.UserError, match=f"{ids:,} ids.*{rows:,} rows"):
    setup.check_vocabulary(vocabulary, rows)


class Vocabulary:
  eos_id = 1


DECODING = {"greedy": 1, "beam_search": 4, "nucleus_sampling": 1,
            "beam_sampling": 5}


@pytest.mark.parametrize("name", DECODING)
@pytest.mark.parametrize("scan", [False, True])
def test_decoding(build, name, scan):
  model = dataclasses.replace(build(
      "architectures/llama", "models/causal_lm", "models/causal_lm_prompt",
      f"models/decoding/{name}", *TINY, "--gin.MAX_POSITIONS=64",
      f"--gin.SCAN_LAYERS={scan}"), vocabulary=Vocabulary)
  params, _ = model.abstract()
  batch = {"decoder_input_tokens": jax.ShapeDtypeStruct((3, 12), jnp.int32),
           "decoder_target_tokens": jax.ShapeDtypeStruct((3, 5), jnp.int32),
           "decoder_target_positions": jax.ShapeDtypeStruct(
               (3, 5), jnp.int32)}
  tokens, scores = jax.eval_shape(
      model.decodes, params, batch, jax.random.PRNGKey(0))
  assert tokens.shape == (3, DECODING[name], 5)
  assert scores.shape == (3, DECODING[name])


@pytest.fixture
def folder(tmp_path, build):
  """A tiny Llama as Hugging Face keeps it, with weights and tokenizer."""
  import tokenizers

  model = build(
      "architectures/llama", "models/causal_lm", *TINY,
      "--gin.MAX_POSITIONS=64", "--gin.NUM_KV_HEADS=1",
      "--gin.ROPE_THETA=500.0")
  shapes, _ = model.abstract()
  draw = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: draw.normal(size=s.shape).astype(np.float32), shapes)
  hugging_face.save(
      tmp_path / "tiny", params, model.module.config, "float32")
  words = {word: i for i, word in enumerate(
      ("<unk>", "</s>", "review", "good", "bad", "is", "it", "?"))}
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(words, "<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(tmp_path / "tiny" / "tokenizer.json"))
  (tmp_path / "tiny" / "tokenizer_config.json").write_text(
      json.dumps({"eos_token": "</s>"}))
  return tmp_path / "tiny", params


def test_sizes_from_the_checkpoint(build, clean_gin, folder):
  """Its own config.json is enough, and its tokenizer starts the prompt."""
  path, params = folder
  model = build(
      "models/causal_lm_from_checkpoint_prompt",
      "prompts/from_embedded_string",
      f"--gin.INITIAL_CHECKPOINT_PATH={str(path)!r}", SCAN,
      "--gin.PROMPT_TEXT='is it good ?'", "--gin.PROMPT_LENGTH=6",
      "--gin.REPEAT_PROMPT_TEXT=True", "--gin.POPULATION_SIZE=None",
      "--gin.ACTIVATION_DTYPE='bfloat16'")
  config = model.module.config
  assert (config.kv_heads, config.rope_theta, config.scan_layers) == (
      1, 500.0, True)
  assert jnp.dtype(config.dtype) == jnp.bfloat16
  assert model.vocabulary.eos_id == 1
  prompt = clean_gin.get_configurable(prompts.Prompt)()
  table = params["token_embedder"]["embedding"]
  start = prompt.prompt_init(jax.random.PRNGKey(0), (6, 8))
  assert (start == table[[5, 6, 3, 7, 5, 6]]).all()


def test_projections_that_are_one_in_the_checkpoint(tmp_path, folder):
  """As the family's map has them; the gin files of models say the same."""
  path, _ = folder
  assert base_config.fused_projections(path) == ()
  for name, config in (("gpt2", PUBLISHED["gpt2"][1]),
                       ("phi3", PUBLISHED["phi_3_mini_4k"][1])):
    family = families.of_type(config["model_type"], name)
    own = family.Config(**family.read_config(config_json.ConfigJson(
        name, config | {
            "n_embd": 8, "n_layer": 1, "n_head": 2, "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 8,
            "vocab_size": 9, "n_positions": 9})))
    params = {
        ours: np.zeros(piece.shape, np.float32)
        for ours, piece in family.weight_map(own, {}).items()}
    hugging_face.save(
        tmp_path / name, state_lib.unflatten(params), own, "float32", name)
    assert base_config.fused_projections(tmp_path / name) == (
        "query", "key", "value")


def test_what_is_no_decoder_only_checkpoint(tiny_base, tmp_path):
  with pytest.raises(errors.UserError, match="not a decoder-only model"):
    base_config.causal_lm_config(tiny_base)
  with pytest.raises(errors.UserError, match="no checkpoint folder"):
    base_config.causal_lm_config(tmp_path / "absent")


@pytest.mark.parametrize("delta", ["lora", "ia3"])
def test_deltas(build, delta):
  model = build(
      "architectures/llama", "models/causal_lm", "models/causal_lm_prompt",
      f"prompts/{delta}", *TINY, "--gin.MAX_POSITIONS=64")
  params, _ = model.abstract()
  assert "prompt" not in params["decoder"]
  assert delta in params["decoder"]["layers_0"]["attention"]["value"]


# ------------------------------------------------------------------- baselines

RUN = ["--gin.MODEL_DIR='run'", "--gin.MIXTURE_OR_TASK_NAME='task'",
       "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
       "--gin.TRAIN_STEPS=1000", PATH]


def bound(gin, name):
  """What gin gives to `train` as the argument `name`."""
  reference = gin.config.get_bindings(loop.train, resolve_references=False)
  return reference[name].scoped_configurable_fn()


@pytest.fixture
def trained(build, clean_gin):
  """Which parameters a run trains, by path, and how many all are."""

  def read(*arguments):
    shapes, _ = build(*arguments[:2], "runs/prompt_finetune", *RUN,
                      *arguments[2:]).abstract()
    found, _ = state_lib.split(shapes, bound(clean_gin, "trainable"))
    return state_lib.flatten(found), count(shapes)

  return read


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_fine_tuning_trains_everything(trained, name):
  found, everything = trained(f"models/{name}", "prompts/full", SCAN)
  assert count(found) == everything == PUBLISHED[name][0]


def test_full_fine_tuning_has_the_optimizer_of_lopas_authors(
    build, clean_gin):
  """torch's AdamW on clipped gradients, under a linear schedule."""
  import optax

  build("models/gpt2", "prompts/full", "runs/prompt_finetune", *RUN,
        "--gin.WARMUP_STEPS=10")
  optimizer = bound(clean_gin, "optimizer")
  params = {"w": jnp.array([3.0, -4.0])}
  gradient = {"w": jnp.array([30.0, 40.0])}
  state = optimizer.init(params)
  rates = [0.0, 1e-6]  # of step 0 and 1, on the way to 1e-5 at step 10
  for rate in rates:
    before = params["w"]
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    # Clipped to norm 1, constant gradients: Adam's step is their sign. In
    # float32 its 1 - 0.999^2 is right to 3e-5.
    np.testing.assert_allclose(
        updates["w"], -rate * (1.0 + 0.05 * before), rtol=1e-4)
  saving = clean_gin.get_configurable(settings.SaveCheckpointConfig)()
  assert (saving.keep, saving.model_dtype) == (1, "float32")


# What PEFT trains of each model with the targets of LOPA's authors.
LORA = {
    "phi_2": 7_864_320, "phi_3_mini_4k": 6_291_456,
    "codegen_350m": 1_310_720, "codegen2_3_7b": 4_194_304,
    "deepseek_coder_1_3b": 4_718_592, "deepseek_coder_7b_v1_5": 11_796_480,
    "llama_3_8b": 9_437_184, "gpt2_medium": 1_572_864}


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("rank", [16, 4])
def test_lora_of_lopas_authors(trained, name, rank):
  found, everything = trained(
      f"models/{name}", "prompts/lora_code", SCAN, f"--gin.LORA_RANK={rank}")
  assert count(found) == LORA[name] * rank // 16
  assert everything == PUBLISHED[name][0] + count(found)


@pytest.mark.parametrize("method, expected", [
    ([], 7_681_536), (["--gin.PREFIX=@prefix.Prefix"], 46_080)])
def test_the_assignment_trains_what_peft_does(
    build, clean_gin, tmp_path, method, expected):
  """PEFT's prefix of 5 for DistilGPT-2, with its projection and without."""
  pairs = tmp_path / "train.txt"
  pairs.write_text("a : b||a text\n" * 33)
  shapes, _ = build(
      "models/distilgpt2", "runs/table_to_text", PATH, "--gin.MODEL_DIR='run'",
      f"--gin.TRAIN_FILE={str(pairs)!r}", *method).abstract()
  found, everything = state_lib.split(shapes, bound(clean_gin, "trainable"))
  assert count(found) == expected
  assert count(everything) == PUBLISHED["distilgpt2"][0]
  with clean_gin.config_scope("train"):
    assert clean_gin.get_configurable(settings.DatasetConfig)().batch_size == 16
  assert clean_gin.config.get_bindings(loop.train)["total_steps"] == 3


def test_prompt_tuning_trains_the_prompt_alone(trained):
  found, _ = trained("models/phi_2_prompt", "models/causal_lm_prompt",
                     "--gin.PROMPT_LENGTH=10", SCAN)
  assert count(found) == 10 * 2560


@pytest.mark.parametrize("layers, table, expected", [
    # Li & Liang's modes 22, 2, 11 and 0, with their 50,258 rows.
    (2, False, 25_194_496), (2, True, 76_658_688),
    (1, False, 12_596_224 + 2048), (0, True, 51_464_192 + 2048)])
def test_top_layers_of_gpt2_medium(trained, layers, table, expected):
  found, _ = trained(
      "models/gpt2_medium", "prompts/top_layers", f"--gin.TOP_LAYERS={layers}",
      f"--gin.TOP_LAYERS_WITH_EMBEDDING={table}",
      "--gin.NUM_EMBEDDINGS=50258")
  assert count(found) == expected


def test_top_layers_of_an_untied_model_train_its_logits(trained):
  found, _ = trained(
      "models/deepseek_coder_1_3b", "prompts/top_layers",
      "--gin.TOP_LAYERS=1")
  assert {path.split("/")[1] for path in found} == {
      "decoder_norm", "layers_23", "logits_dense"}


@pytest.mark.parametrize("flag, words", [
    ("SCAN_LAYERS=True", "SCAN_LAYERS is True"),
    ("TOP_LAYERS=13", "TOP_LAYERS .*13.*0 to the model's 12")])
def test_top_layers_that_cannot_be(trained, flag, words):
  with pytest.raises(Exception, match=words):
    trained("models/gpt2", "prompts/top_layers", f"--gin.{flag}")


@pytest.mark.parametrize("run, flags", [
    ("prompt_finetune", ["MODEL_DIR='run'", "TRAIN_STEPS=10"]),
    ("prompt_eval", ["PROMPT_FILE='p.npy'", "EVAL_OUTPUT_DIR='out'"]),
    ("prompt_infer", ["PROMPT_FILE='p.npy'", "INFER_OUTPUT_DIR='out'"])])
def test_one_path_serves_every_run(build, clean_gin, run, flags):
  """Weights to start from, weights of a trained prompt, tokenizer: all one."""
  build("models/gpt2_prompt", f"runs/{run}", PATH,
        "--gin.MIXTURE_OR_TASK_NAME='task'", "--gin.prompts.Prompt."
        "prompt_init=@linen.initializers.normal()",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
        *(f"--gin.{flag}" for flag in flags))
  restore = clean_gin.get_configurable(settings.RestoreCheckpointConfig)()
  assert restore.path == "base"
  assert command_line.macro("VOCABULARY_FILE") == "base"
