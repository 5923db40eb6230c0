"""Makes the embedded default anew: vocabulary, two stages, export.

    python -m prompt_tuning.scripts.pretrain_default --output_dir=runs/default

T5's own recipe in small (Raffel et al. 2020; Lester et al. 2021, 3.3): span
corruption, then language-model adaptation, on the docstrings of the installed
packages. Interrupted and started again, it goes on. The result is a Hugging
Face T5 directory, `--output_dir`/t5_1_1_docstrings.
"""

import argparse
import hashlib
import io
import os
import shutil

import gin

from prompt_tuning import command_line, errors, formats, pretrained
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.data import docstrings
from prompt_tuning.train import exporting, loop, state

VOCABULARY_SIZE = 4096 - pretrained.EXTRA_IDS
CONFIGS = "prompt_tuning/configs"
# Characters of one page that the vocabulary is trained on, and in one piece.
PAGE, PIECE = 4000, 2000


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output_dir", default="runs/default")
  parser.add_argument("--span_corruption_steps", type=int, default=1266)
  parser.add_argument("--language_model_steps", type=int, default=1500)
  parser.add_argument(
      "--new_vocabulary", action="store_true",
      help="train the vocabulary too, in place of the packaged one")
  flags = parser.parse_args(arguments)
  with errors.reported():
    if flags.new_vocabulary:
      train_vocabulary(pretrained.vocabulary_path())
    first = os.path.join(flags.output_dir, "span_corruption")
    second = os.path.join(flags.output_dir, "language_model")
    _stage(
        first, "docstring_span_corruption", flags.span_corruption_steps,
        "{'inputs': 96, 'targets': 32}", 0.02, 200,
        "--gin.LEARNING_RATE_SCHEDULE="
        "@schedules.create_learning_rate_scheduler()")
    _stage(
        second, "docstring_language_model", flags.language_model_steps,
        "{'inputs': 96, 'targets': 48}", 0.02, 50,
        "--gin.BUCKET_LENGTHS='auto'",
        f"--gin.INITIAL_CHECKPOINT_PATH={_exported(first)!r}")
    target = os.path.join(flags.output_dir, "t5_1_1_docstrings")
    package(_exported(second), target)
    print(f"The model: {target}")


def train_vocabulary(path: str) -> None:
  """Trains the SentencePiece model on the pages of the pretraining split."""
  import sentencepiece

  texts = {
      " ".join(docstrings.page(entry).split())
      for package_name in docstrings.PACKAGES
      for entry in docstrings.entries(package_name, "pretrain")}
  ordered = sorted(texts, key=lambda t: hashlib.sha256(t.encode()).digest())
  pieces = (
      text[start:start + PIECE] for text in ordered
      for start in range(0, min(len(text), PAGE), PIECE))
  model = io.BytesIO()  # a file's name would be kept inside the model
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=pieces, model_writer=model,
      vocab_size=VOCABULARY_SIZE, character_coverage=0.9995, pad_id=0,
      eos_id=1, unk_id=2, bos_id=-1, input_sentence_size=20_000,
      shuffle_input_sentence=False, max_sentence_length=20_000,
      minloglevel=1)
  formats.write_whole(path, model.getvalue())


def _stage(model_dir, task, steps, lengths, learning_rate, warmup, *more):
  gin.clear_config()
  command_line.configure([
      f"--gin_file={CONFIGS}/models/t5_1_1_default.gin",
      f"--gin_file={CONFIGS}/runs/pretrain.gin",
      f"--gin.MODEL_DIR={model_dir!r}",
      f"--gin.MIXTURE_OR_TASK_NAME={task!r}",
      f"--gin.TASK_FEATURE_LENGTHS={lengths}",
      f"--gin.TRAIN_STEPS={steps}",
      "--gin.BATCH_SIZE=32", "--gin.EVAL_PERIOD=500", "--gin.SAVE_PERIOD=500",
      "--gin.LOSS_NORMALIZING_FACTOR='num_tokens'",
      f"--gin.LEARNING_RATE={learning_rate}",
      f"--gin.WARMUP_STEPS={warmup}", *more])
  command_line.call(loop.train)


def _exported(model_dir: str) -> str:
  return os.path.join(model_dir, exporting.MODEL_FOLDER)


def package(source: str, target: str) -> None:
  """The trained model in bfloat16 with its vocabulary, ready to ship."""
  weights = hugging_face.HuggingFaceWeights(source)
  params = {
      name: base.read_variable(source, name) for name in weights.arrays}
  hugging_face.save(
      target, state.unflatten(params), weights.config, "bfloat16",
      weights.family)
  if not os.path.samefile(
      os.path.dirname(pretrained.vocabulary_path()), target):
    shutil.copy(pretrained.vocabulary_path(), target)


if __name__ == "__main__":
  main()
