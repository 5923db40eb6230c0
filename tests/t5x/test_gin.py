"""The run files as T5X parses them, and what its users bind."""

import sys

import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

import t5x.eval  # noqa: E402
import t5x.infer  # noqa: E402
import t5x.models  # noqa: E402
import t5x.train  # noqa: E402
import t5x.utils  # noqa: E402

from prompt_tuning import command_line, errors  # noqa: E402
from prompt_tuning.t5x import models, optim  # noqa: E402

CONFIGS = command_line.PACKAGE / "configs"
PROGRAMS = {"finetune": t5x.train.train, "eval": t5x.eval.evaluate,
            "infer": t5x.infer.infer}
NEEDED = ["MIXTURE_OR_TASK_NAME = 'task'", "TASK_FEATURE_LENGTHS = {}",
          "MODEL_DIR = '/run'", "CHECKPOINT_PATH = '/base'",
          "INITIAL_CHECKPOINT_PATH = '/base'", "TRAIN_STEPS = 5"]


@pytest.fixture
def parse(clean_gin, monkeypatch):
  """Reads a model's and a run's gin file, as the program `run` does."""

  def parse(
      run, *bindings, files=("models/t5_1_1_small_prompt",), kind="prompt"):
    program = PROGRAMS[run]
    monkeypatch.setattr(
        sys.modules["__main__"], program.__name__, program, raising=False)
    clean_gin.clear_config()
    for folder in (command_line.PACKAGE.parent, t5x.__path__[0] + "/.."):
      clean_gin.add_config_file_search_path(str(folder))
    clean_gin.parse_config_files_and_bindings(
        [*(f"{CONFIGS}/{name}.gin" for name in files),
         f"{CONFIGS}/runs/t5x_{kind}_{run}.gin"], [*NEEDED, *bindings],
        finalize_config=False)
    return clean_gin

  return parse


@pytest.mark.parametrize("run", PROGRAMS)
def test_every_run_makes_t5xs_model(parse, run):
  gin = parse(run, "VOCABULARY_FILE = 'spiece.model'")
  model = gin.get_configurable(models.from_engine)()
  assert type(model) is t5x.models.EncoderDecoderModel
  assert model.module.config.embed_dim == 512
  assert model.input_vocabulary.sentencepiece_model_file == "spiece.model"
  assert isinstance(model.optimizer_def, optim.Trainable) == (
      run == "finetune")
  restore = gin.get_configurable(t5x.utils.RestoreCheckpointConfig)()
  assert restore.fallback_to_scratch and restore.path == "/base"
  assert len(restore.state_transformation_fns) == 1


@pytest.mark.parametrize("run", ["eval", "infer"])
def test_all_that_was_trained_is_of_the_checkpoint(parse, run):
  gin = parse(run, "VOCABULARY_FILE = 'spiece.model'", kind="trained", files=(
      "models/t5_1_1_small_prompt", "prompts/lopa"))
  restore = gin.get_configurable(t5x.utils.RestoreCheckpointConfig)()
  assert not restore.fallback_to_scratch
  [hook] = restore.state_transformation_fns
  state = {"state": {"step": 0}, "target": {"base": 0, "prompt": {"shared": 1}}}
  assert hook(state, state) == state
  with pytest.raises(errors.UserError, match="lacks 1 of the 2 parameters"):
    hook({**state, "target": {"base": 0}}, state)


def test_what_users_bind(parse):
  gin = parse(
      "finetune",
      "adafactor.Adafactor.decay_rate = 0.7", "PROMPT_REGEX = ['.*/mine']",
      "seqio.SentencePieceVocabulary.sentencepiece_model_file = 'theirs'",
      "models.EncoderDecoderModel.z_loss = 0.5",
      "utils.SaveCheckpointConfig.keep = 3",
      "utils.RestoreCheckpointConfig.assignment_map = (('a', None),)",
      "utils.create_learning_rate_scheduler.base_learning_rate = 0.5",
      "train/utils.DatasetConfig.batch_size = 4",
      "partitioning.PjitPartitioner.num_partitions = 2",
      "trainer.Trainer.num_microbatches = 2",
      "prompt_init/linen.initializers.uniform.scale = 0.25",
      files=("models/t5_1_1_small_prompt", "models/decoding/beam_search"))
  model = gin.get_configurable(models.from_engine)()
  assert model._z_loss == 0.5
  assert model.input_vocabulary.sentencepiece_model_file == "theirs"
  assert model._default_decoder_params.num_decodes == 4
  assert model.optimizer_def.patterns == (".*/mine",)
  inner = model.optimizer_def.optimizer.hyper_params
  assert (inner.decay_rate, inner.weight_decay_rate) == (0.7, 1e-5)
  save = gin.get_configurable(t5x.utils.SaveCheckpointConfig)()
  assert (save.keep, save.period) == (3, 1000)
  restore = gin.get_configurable(t5x.utils.RestoreCheckpointConfig)()
  assert len(restore.state_transformation_fns) == 2
  for name, value in {
      "t5x.utils.create_learning_rate_scheduler.base_learning_rate": 0.5,
      "partitioning.PjitPartitioner.num_partitions": 2,
      "trainer.Trainer.num_microbatches": 2}.items():
    assert gin.query_parameter(name) == value


def test_the_original_s_rate_and_start(parse):
  gin = parse("finetune", "VOCABULARY_FILE = 'spiece.model'")
  scheduler = gin.get_configurable(t5x.utils.create_learning_rate_scheduler)()
  assert float(scheduler(1_100_000)) == pytest.approx(0.3)
  hyper = gin.get_configurable(
      models.from_engine)().optimizer_def.optimizer.hyper_params
  assert not hyper.multiply_by_parameter_scale
  assert hyper.decay_rate == 0.8 and hyper.step_offset == 0


def test_flaxformer_takes_the_place_of_our_module(parse):
  pytest.importorskip("flaxformer")
  from prompt_tuning.t5x import flaxformer

  gin = parse(
      "infer", "VOCABULARY_FILE = 'spiece.model'",
      files=("models/t5_1_1_small_prompt",
             "architectures/flaxformer_t5_prompt"))
  model = gin.get_configurable(models.from_engine)()
  assert isinstance(model.module, flaxformer.PromptEncoderDecoder)


def test_flaxformer_s_decoder_alone(parse, shared_data):
  pytest.importorskip("flaxformer")
  from prompt_tuning.t5x import flaxformer

  file = str(shared_data / "t5x" / "t5_vocab")
  gin = parse(
      "infer", f"VOCABULARY_FILE = {file!r}", "PROMPT_LENGTH = 7",
      files=("models/t5_1_1_small_prompt",
             "architectures/flaxformer_decoder_only_prompt"))
  model = gin.get_configurable(models.from_engine)()
  assert type(model) is t5x.models.DecoderOnlyModel
  assert isinstance(model.module, flaxformer.PromptDecoderOnly)
  assert model.module.prompt_length == 7


def test_our_decoder_only_models(parse, shared_data):
  file = str(shared_data / "t5x" / "t5_vocab")
  gin = parse(
      "finetune", f"VOCABULARY_FILE = {file!r}",
      files=("../../tests/t5x/tiny_lm",))
  model = gin.get_configurable(models.from_engine)()
  assert type(model) is t5x.models.DecoderOnlyModel
  assert model.module.config.num_layers == 2
  assert isinstance(model.optimizer_def, optim.Trainable)
