"""Whole runs of `prompt_tuning.train` against `t5x.train`, for `benchmark`.

T5 1.1 small with the original's settings: batch 8, inputs 128, targets 8,
prompt 100, bfloat16 activations, dropout 0.1; random base weights, written
once as a checkpoint of T5X. Both programs are started as a user starts them,
with the same settings and the same seqio task, and take turns. T5X runs
Flaxformer's T5 with one-hot embeddings, as the original did, with our prompt
in it (`t5x.flaxformer`), since the original's own modules no longer run.

The runs are only listened to: each training step is waited for, and its start
and end are noted, and how much CPU time the process has used. What is before
the first end is the start; a save blocks the loop between the end of a step
and the start of the next. On a machine with other work CPU seconds are the
figure to compare.
"""

import datetime
import functools
import importlib
import json
import os
import pathlib
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

CONTENDERS = {"ours": "prompt_tuning.train", "T5X": "t5x.train"}
LENGTHS = {"inputs": 128, "targets": 8}
BATCH_SIZE = 8
BASE_STEP = 0
MEASURES = {
    "start": "process start to first step, s",
    "start_cpu": "  CPU seconds of it",
    "step": "seconds a step",
    "step_cpu": "  CPU seconds a step",
    "bytes": "bytes a save, optimizer included",
    "prompt_bytes": "  of them the prompt as .npy",
    "blocked": "seconds a save blocks the loop"}
TASK = "benchmark_random_words"
# How many pieces the vocabulary of T5 has, without its 100 extra ids.
PIECES = 32_000
_EXAMPLES = 512
# Where a contender finds what the others prepared, and writes what it notes.
_FOLDER, _NOTES = "PROMPT_TUNING_BENCHMARK", "PROMPT_TUNING_BENCHMARK_NOTES"


def missing() -> str:
  """What T5X lacks to run here, as one sentence; "" if it can."""
  try:
    for module in ("t5x.train", "flaxformer.architectures.t5.t5_architecture"):
      importlib.import_module(module)
  except ImportError as error:
    return (f"T5X cannot run here ({error}), so only our own runs are "
            "measured: docs/t5x.md says how to install it.")
  return ""


def print_table(steps: int, rounds: int = 2):
  """Runs the contenders in turns and prints medians and ratios.

  Args:
    steps: of each run; a checkpoint is saved half way and at the end.
    rounds: how many runs each has.
  """
  lacking = missing()
  if lacking:
    print(lacking)
  names = ["ours"] if lacking else list(CONTENDERS)
  found = _race(names, steps, rounds)
  print(f"t5x: {platform.processor() or platform.machine()}, {os.cpu_count()} "
        f"cores, {datetime.date.today()}, {rounds} runs of {steps} steps each")
  print(f"{'':36}" + "".join(f"{name:>14}" for name in names)
        + ("" if lacking else f"{'T5X / ours':>14}"))
  for measure, label in MEASURES.items():
    values = [found[name][measure] for name in names]
    print(f"{label:36}" + "".join(f"{value:14,.3f}" for value in values) + (
        "" if lacking else f"{values[1] / values[0]:14,.1f}"))


def _race(names, steps, rounds) -> dict[str, dict[str, float]]:
  """Medians by contender and measure."""
  found = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    prepare(pathlib.Path(folder))
    for i in range(rounds):
      for name in names:
        found[name].append(
            _run(name, pathlib.Path(folder), f"{name}-{i}", steps))
  return {
      name: {measure: statistics.median(one[measure] for one in runs)
             for measure in MEASURES} for name, runs in found.items()}


def prepare(folder: pathlib.Path):
  """Writes the vocabulary, the examples and the base weights."""
  from sentencepiece import sentencepiece_model_pb2 as model_pb2

  from prompt_tuning.formats import t5x

  words = [_word(i) for i in range(PIECES - 3)]
  model = model_pb2.ModelProto()
  kinds = model_pb2.ModelProto.SentencePiece
  for piece, kind in (
      ("<pad>", kinds.CONTROL), ("</s>", kinds.CONTROL),
      ("<unk>", kinds.UNKNOWN), *((f"\u2581{w}", kinds.NORMAL)
                                  for w in words)):
    model.pieces.add(piece=piece, score=0.0, type=kind)
  model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
  model.trainer_spec.unk_id, model.trainer_spec.bos_id = 2, -1
  model.trainer_spec.vocab_size = PIECES
  (folder / "vocabulary.model").write_bytes(model.SerializeToString())

  rng = np.random.default_rng(0)
  with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
    for _ in range(_EXAMPLES):
      file.write(json.dumps({
          name: " ".join(words[i] for i in rng.integers(
              len(words), size=length - 1))
          for name, length in LENGTHS.items()}) + "\n")
  t5x.write_all(folder / f"checkpoint_{BASE_STEP}", _weights(rng), BASE_STEP)


def _word(number: int) -> str:
  """A word of four letters that no other number has."""
  letters = ""
  for _ in range(4):
    number, letter = divmod(number, 26)
    letters += chr(ord("a") + letter)
  return letters


def _weights(rng):
  from prompt_tuning.models import encoder_decoder, t5
  from prompt_tuning.train import state as state_lib

  model = encoder_decoder.EncoderDecoderModel(t5.EncoderDecoder(t5.Config(
      vocab_size=32_128, embed_dim=512, num_heads=6, head_dim=64,
      mlp_dim=1024, num_encoder_layers=8, num_decoder_layers=8)), None, None)
  shapes, _ = model.abstract()
  for path, shape in state_lib.flatten(shapes).items():
    yield path, 0.05 * rng.standard_normal(shape.shape, np.float32)


def _run(name, folder, run, steps) -> dict[str, float]:
  """One whole run in a process of its own."""
  model_dir = folder / run
  notes = folder / f"{run}.jsonl"
  environment = os.environ | {_FOLDER: str(folder), _NOTES: str(notes)}
  started = time.time()
  done = subprocess.run(
      [sys.executable, "-m", "prompt_tuning.scripts.benchmark_t5x", name,
       *_flags(name, folder, model_dir, steps)],
      env=environment, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
  times = [json.loads(line) for line in notes.read_text().splitlines()]
  return _measures(times, started, steps) | _bytes(
      model_dir, BASE_STEP + steps)


def _measures(times, started, steps) -> dict[str, float]:
  """Of start, end and CPU seconds so far of each step."""
  begins, ends, cpu = zip(*times)
  gaps = [begin - end for end, begin in zip(ends, begins[1:])]
  half = steps // 2  # after so many steps there is a save
  usual = [i for i in range(1, steps - 1) if not half - 1 <= i <= half + 1]
  return {
      "start": ends[0] - started, "start_cpu": cpu[0],
      "step": statistics.median(ends[i + 1] - ends[i] for i in usual),
      "step_cpu": statistics.median(cpu[i + 1] - cpu[i] for i in usual),
      "blocked": gaps[half - 1] - statistics.median(gaps)}


def _bytes(model_dir: pathlib.Path, step: int) -> dict[str, int]:
  """What a save wrote; not the logs, which grow with the run."""
  prompts = _size(model_dir / "numpy_checkpoints" / f"checkpoint_{step}")
  newest = sum(  # prompt.npy is one of the prompts under a second name
      file.stat().st_size for file in model_dir.glob("prompt.*")
      if file.stat().st_nlink == 1)
  return {"bytes": _size(model_dir / f"checkpoint_{step}") + prompts + newest,
          "prompt_bytes": prompts}


def _size(folder: pathlib.Path) -> int:
  return sum(
      path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flags(name, folder, model_dir, steps) -> list[str]:
  configs = "prompt_tuning/configs"
  files = [f"{configs}/models/t5_1_1_small_prompt.gin"]
  bindings = {
      "MIXTURE_OR_TASK_NAME": TASK,
      "MIXTURE_OR_TASK_MODULE": "prompt_tuning.scripts.benchmark_t5x_task",
      "TASK_FEATURE_LENGTHS": LENGTHS, "USE_CACHED_TASKS": False,
      "BATCH_SIZE": BATCH_SIZE, "DROPOUT_RATE": 0.1,
      "ACTIVATION_DTYPE": "bfloat16", "TRAIN_STEPS": BASE_STEP + steps,
      "VOCABULARY_FILE": str(folder / "vocabulary.model"),
      "INITIAL_CHECKPOINT_PATH": str(
          folder / f"checkpoint_{BASE_STEP}"),
      "MODEL_DIR": str(model_dir),
      # A run that can be repeated: T5X then draws dropout by threefry.
      "RANDOM_SEED": 0,
      "train.train_eval_dataset_cfg": None,
      "train.infer_eval_dataset_cfg": None,
      "utils.SaveCheckpointConfig.period": steps // 2}
  if name == "ours":
    files.append(f"{configs}/runs/prompt_finetune.gin")
  else:
    files += [f"{configs}/architectures/flaxformer_t5_prompt.gin",
              f"{configs}/runs/t5x_prompt_finetune.gin"]
    bindings["flaxformer.encoder_decoder.one_hot"] = True
  root = pathlib.Path(__file__).parents[2]
  return [*([f"--gin_search_paths={root}"] if name != "ours" else []),
          *(f"--gin_file={file}" for file in files),
          *(f"--gin.{key}={value!r}" for key, value in bindings.items())]


# ------------------------------------------------------- in a contender's run


def main(name: str, *flags: str):
  """Runs a contender's program with these flags; notes its steps' times."""
  file = open(os.environ[_NOTES], "a", encoding="utf-8")
  (_listen_to_ours if name == "ours" else _listen_to_t5x)(
      functools.partial(_noted, file))
  sys.argv = [CONTENDERS[name], *flags]
  runpy.run_module(CONTENDERS[name], run_name="__main__", alter_sys=True)


def _noted(file, step):
  import jax

  def run(*arguments):
    start = time.time()
    outcome = jax.block_until_ready(step(*arguments))
    file.write(f"[{start}, {time.time()}, {time.process_time()}]\n")
    file.flush()
    return outcome

  return run


def _listen_to_ours(noted):
  from prompt_tuning.train import step

  compiled = step.compiled_update
  step.compiled_update = lambda *arguments: noted(compiled(*arguments))


def _listen_to_t5x(noted):
  trainer = importlib.import_module("t5x.trainer")
  compile_train = trainer.BaseTrainer.compile_train

  def compile_and_listen(self, batch):
    compile_train(self, batch)
    self._compiled_train_step = noted(self._compiled_train_step)

  trainer.BaseTrainer.compile_train = compile_and_listen


if __name__ == "__main__":
  main(*sys.argv[1:])
