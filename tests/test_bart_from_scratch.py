"""A tiny BART of our own: trained on noised sentences, frozen, prefix-tuned.

As BART was made and as Li & Liang 2021 (arXiv 2101.00190) tune it: the network
learns to restore sentences of E2E whose words are masked, by full training from
random weights; then its three prefixes alone learn what food a sentence speaks
of. Oracles: the frozen network on the same sentences (19.8 a token; tuned 0.02,
99 % right); how often each food occurs (0.35, 52 %), which is all that could be
learned without reading.
"""

import collections
import gzip
import json
import math
import random
import re

import pytest

CONFIGS = "prompt_tuning/configs"
SIZES = {"NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 2, "NUM_HEADS": 4,
         "HEAD_DIM": 16, "EMBED_DIM": 64, "MLP_DIM": 128, "NUM_EMBEDDINGS": 512,
         "MAX_POSITIONS": 32}
# As they stand in BART's tokenizer.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LONGEST = 22
MASKED = 0.2
NO_METRICS = "--gin_bindings=train_script.train.infer_eval_dataset_cfg = None"


def sentences(path):
  """Short ones that name their table's food in one word, and that word."""
  with gzip.open(path, "rt", encoding="utf-8") as file:
    for line in file:
      table, _, text = line.lower().partition("||")
      food = re.search(r"food : (\w+) \|", table)
      words = re.findall(r"\w+|[^\w\s]", text)
      if food and food[1] in words and len(words) <= LONGEST:
        yield words, food[1]


@pytest.fixture(scope="module")
def data(shared_data, tmp_path_factory):
  """A folder with both tasks' files and a tokenizer; counts of the foods."""
  import tokenizers

  folder, draw = tmp_path_factory.mktemp("bart"), random.Random(0)
  counts = {}
  for split, count in (("train", 6000), ("valid", 256)):
    found = list(sentences(shared_data / f"e2e/{split}.txt.gz"))
    draw.shuffle(found)
    found = found[:count]
    counts[split] = collections.Counter(food for _, food in found)
    for task, rows in (
        ("noised", ((["<mask>" if draw.random() < MASKED else word
                      for word in words], words) for words, _ in found)),
        ("food", ((words, [food]) for words, food in found))):
      (folder / f"{task}_{split}.tsv").write_text("inputs\ttargets\n" + "".join(
          "\t".join(map(" ".join, row)) + "\n" for row in rows))
    if split == "train":
      tokenizer = tokenizers.Tokenizer(
          tokenizers.models.WordLevel(unk_token="<unk>"))
      tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
      tokenizer.train_from_iterator(
          (" ".join(words) for words, _ in found),
          tokenizers.trainers.WordLevelTrainer(
              vocab_size=SIZES["NUM_EMBEDDINGS"], show_progress=False,
              special_tokens=list(SPECIAL)))
      tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({
      "eos_token": "</s>", "pad_token": "<pad>"}))
  return folder, counts["valid"]


def flags(folder, task, targets, *files, **macros):
  macros = {
      **SIZES, "VOCABULARY_FILE": str(folder / "tokenizer.json"),
      "TRAIN_FILE": str(folder / f"{task}_train.tsv"),
      "VALIDATION_FILE": str(folder / f"{task}_valid.tsv"),
      "INPUTS": "{inputs}", "TARGETS": "targets", "BATCH_SIZE": 32,
      "TASK_FEATURE_LENGTHS": {"inputs": 26, "targets": targets}, **macros}
  return [*(f"--gin_file={CONFIGS}/{name}.gin" for name in files),
          *(f"--gin.{name}={value!r}" for name, value in macros.items())]


@pytest.fixture(scope="module")
def pretrained(command, data):
  """The folder of the network that restores sentences."""
  folder, _ = data
  outcome = command("train", *flags(
      folder, "noised", 26, "models/bart_base", "prompts/full",
      "tasks/from_files", "runs/prompt_finetune", INITIAL_CHECKPOINT_PATH=None,
      TRAIN_STEPS=400, LEARNING_RATE=3e-3, WARMUP_STEPS=40, WEIGHT_DECAY=0.0,
      EVAL_PERIOD=400, SAVE_PERIOD=400, MODEL_DIR=str(folder / "run")),
      NO_METRICS)
  assert outcome.status == 0, outcome.err
  # Of five words four stand in the input; far from what frequencies give.
  assert outcome.result["file/token_accuracy"] > 75
  return folder / "run" / "hugging_face"


@pytest.mark.slow
def test_prefixes_learn_another_task_on_it(command, data, pretrained):
  folder, counts = data
  base = {"INITIAL_CHECKPOINT_PATH": str(pretrained)}
  frozen = command("infer", *flags(
      folder, "food", 2, "models/bart_base", "tasks/from_files",
      "runs/prompt_infer", **base, PROMPT_FILE=None, INFER_MODE="score",
      INFER_OUTPUT_DIR=str(folder / "frozen")))
  assert frozen.status == 0, frozen.err
  scores = [json.loads(line)["score"] for line in open(frozen.result[0])]
  before = -sum(scores) / len(scores) / 2  # a word and the end
  tuned = command("train", *flags(
      folder, "food", 2, "models/bart_base", "prompts/prefix",
      "tasks/from_files", "runs/prompt_finetune", **base, TRAIN_STEPS=150,
      LEARNING_RATE=3e-3, PREFIX_LENGTH=10, PREFIX_HIDDEN_DIM=64,
      EVAL_PERIOD=150, SAVE_PERIOD=150, MODEL_DIR=str(folder / "prefix")))
  assert tuned.status == 0, tuned.err
  after, total = tuned.result["file/loss"], sum(counts.values())
  # Of a guess by frequency; the end is certain.
  guess = -sum(n / total * math.log(n / total) for n in counts.values()) / 2
  assert after < 0.8 * before
  assert after < 0.5 * guess
  assert tuned.result["file/accuracy"] > 90 > (
      100 * max(counts.values()) / total)
