"""The tutorial's run on a tiny Llama: train, evaluate, label a new tweet.

Numbers of one file are held against those of another that is made apart.
"""

import csv
import json
import math
import re

import numpy as np
import pytest

CONFIGS = "prompt_tuning/configs"
MODEL = f"{CONFIGS}/models/causal_lm_from_checkpoint_prompt.gin"
TASK = f"{CONFIGS}/tasks/raft_twitter_complaints.gin"
TWEETS = [(f"the parcel number {i} is {'late' if i % 3 else 'here'}",
           "complaint" if i % 3 else "no complaint") for i in range(20)]


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_tiny_lm):
  """A Hugging Face directory: random weights and a tokenizer of the tweets."""
  return write_tiny_lm(
      tmp_path_factory.mktemp("base"),
      [f"Tweet text : {text} Label : {label}" for text, label in TWEETS * 9]
      + ["Classify if the tweet is a complaint or not:", "complaint"] * 9,
      400, max_positions=128)


def write_tweets(path, rows):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows(rows)
  return str(path)


def flags(**macros):
  return [f"--gin.{name}={value!r}" for name, value in macros.items()]


@pytest.fixture(scope="module")
def trained(command, base, tmp_path_factory):
  """Two epochs of the tutorial; its folder and what the terminal showed."""
  run = tmp_path_factory.mktemp("tutorial")
  rows = [(*tweet, i) for i, tweet in enumerate(TWEETS)]
  tweets = write_tweets(
      run / "train.csv", [("Tweet text", "Label", "ID"), *rows])
  outcome = command(
      "train", f"--gin_file={MODEL}",
      f"--gin_file={CONFIGS}/runs/peft_tutorial.gin", *flags(
          TRAIN_EPOCHS=2, TRAIN_FILE=tweets, MODEL_DIR=str(run),
          INITIAL_CHECKPOINT_PATH=str(base)))
  assert outcome.status == 0, outcome.err
  return run, outcome.err


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_epoch_says_what_the_tutorial_does(trained):
  run, shown = trained
  assert re.search(r"64 trained and [\d,]+ frozen parameters \(.*%", shown)
  training = re.findall(
      r"step (\d) · epoch (\d) · training · loss (\S+) · perplexity (\S+)",
      shown)
  evaluation = re.findall(
      r"step (\d) · twitter_complaints · loss (\S+) · perplexity (\S+)", shown)
  assert [found[:2] for found in training] == [("3", "1"), ("6", "2")]
  assert [found[0] for found in evaluation] == ["3", "6"]
  for loss, perplexity in [f[-2:] for f in training + evaluation]:
    assert float(perplexity.replace(",", "")) == pytest.approx(
        math.exp(float(loss)), rel=2e-3)
  logged = read_lines(run / "train.jsonl")
  assert [line["step"] for line in logged] == [3, 6]
  assert [f"{line['loss']:.4g}" for line in logged] == [
      loss for _, _, loss, _ in training]


def test_the_saved_prompt_labels_tweets(trained, base, command):
  """Accuracy is of the likeliest labels, in the rows that are written."""
  run, _ = trained
  prompt = {"INITIAL_CHECKPOINT_PATH": str(base), "PROMPT_LENGTH": 8,
            "PROMPT_FILE": str(run / "prompt.npy"), "BATCH_SIZE": 8}
  outcome = command(
      "eval", f"--gin_file={MODEL}", f"--gin_file={TASK}",
      f"--gin_file={CONFIGS}/runs/prompt_eval.gin", *flags(
          **prompt, EVAL_SPLIT="train", TRAIN_FILE=str(run / "train.csv"),
          EVAL_OUTPUT_DIR=str(run / "eval")))
  assert outcome.status == 0, outcome.err
  (path,) = (run / "eval" / "inference_eval").glob("*-000000.jsonl")
  rows = read_lines(path)
  assert all(
      row["prediction"] == max(row["scores"], key=row["scores"].get)
      for row in rows)
  hits = [row["prediction"] == label for row, (_, label) in zip(
      rows, TWEETS, strict=True)]
  assert outcome.result["twitter_complaints/accuracy"] == pytest.approx(
      100 * np.mean(hits))

  new = write_tweets(run / "new.csv", [("Tweet text",), ("it is late",)])
  outcome = command(
      "infer", f"--gin_file={MODEL}", f"--gin_file={TASK}",
      f"--gin_file={CONFIGS}/runs/prompt_infer.gin", *flags(
          **prompt, EVAL_SPLIT="test", TEST_FILE=new, TARGETS=None,
          INFER_OUTPUT_DIR=str(run / "infer")))
  assert outcome.status == 0, outcome.err
  (row,) = read_lines(run / "infer" / "twitter_complaints-predict.jsonl")
  assert row["inputs"] == "Tweet text : it is late Label : "
  assert set(row["scores"]) == {"complaint", "no complaint"}
  assert row["prediction"] == max(row["scores"], key=row["scores"].get)
