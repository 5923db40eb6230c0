"""A prompt trained on a frozen T5 in a few minutes, without any download.

    python -m prompt_tuning.scripts.quickstart

Trains on the embedded default, compares the frozen model without a prompt,
with the prompt at its start and with the trained one, and prints the commands
that do the same by hand. Interrupted and started again, it goes on.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time

import gin
import jax

from prompt_tuning import command_line, errors
from prompt_tuning.models import encoder_decoder, t5
from prompt_tuning.train import (
  evaluation,
  inputs,
  loop,
  settings,
  setup,
  sharding,
)

CONFIG = "prompt_tuning/configs/runs/quickstart.gin"


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "--output_dir", default="runs/quickstart", help="folder for results")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
      "--steps", type=int, default=None, help="training steps")
  flags = parser.parse_args(arguments)
  with errors.reported():
    run(flags.output_dir, flags.seed, flags.steps)


def run(output_dir: str, seed: int = 0, steps: int | None = None) -> dict:
  """Trains, compares and explains.

  Args:
    output_dir: folder for everything that is written.
    seed: of the initialisation and the order of the data.
    steps: training steps; the gin file's if None.

  Returns:
    Exact match in percent of "no prompt", "initial prompt" and "trained
    prompt", and of the "majority class".
  """
  start = time.time()
  bindings = [f"--gin.MODEL_DIR={json.dumps(output_dir)}"]
  if seed:
    bindings.append(f"--gin.RANDOM_SEED={seed}")
  if steps is not None:
    bindings.append(f"--gin.TRAIN_STEPS={steps}")
  gin.clear_config()
  command_line.configure([f"--gin_file={CONFIG}", *bindings])
  results = command_line.call(loop.train)
  scores, sizes = _compare(output_dir, seed)
  scores["trained prompt"] = _only_accuracy(results)
  _print_table(scores, sizes, time.time() - start)
  _print_files(output_dir)
  _print_commands(output_dir, bindings)
  return scores


def _compare(output_dir: str, seed: int) -> tuple[dict, tuple[int, int]]:
  """Exact match without a prompt and with the prompt as training began."""
  mesh = sharding.make_mesh()
  prompted = gin.get_configurable(encoder_decoder.EncoderDecoderModel)()
  plain = dataclasses.replace(
      prompted, module=t5.EncoderDecoder(prompted.module.config))
  with gin.config_scope("infer_eval"):
    dataset = gin.get_configurable(settings.DatasetConfig)()
  restore = gin.get_configurable(settings.RestoreCheckpointConfig)()
  task = inputs.members(dataset)[0][0]
  examples = inputs.tokenized(task, dataset, plain, output_dir)
  targets = [examples.original(i)["targets"] for i in range(len(examples))]
  scores = {"majority class": 100.0 * max(
      map(targets.count, set(targets))) / len(targets)}
  trainable_regex = command_line.macro("TRAINABLE_REGEX")
  sizes = (0, 0)
  for name, model, patterns in (
      ("no prompt", plain, ()), ("initial prompt", prompted, trainable_regex)):
    weights = setup.prepare(
        model, restore, patterns, mesh, jax.random.PRNGKey(seed))
    metrics, _ = evaluation.run_task(
        evaluation.Runner(model, mesh), task, examples, dataset, model,
        weights.trainable, weights.frozen)
    scores[name] = metrics["accuracy"]
    sizes = (setup.size(weights.trainable), setup.size(weights.frozen))
  return scores, sizes


def _only_accuracy(results: dict) -> float:
  return next(v for k, v in results.items() if k.endswith("/accuracy"))


def _print_table(scores, sizes, seconds):
  from rich import console, table

  shown = table.Table(title="Which package is this sentence from?")
  shown.add_column("the frozen model with")
  shown.add_column("exact match, held out", justify="right")
  for name in ("no prompt", "initial prompt", "trained prompt"):
    shown.add_row(name, f"{scores[name]:.1f} %")
  shown.add_section()
  shown.add_row("(always the majority class)",
                f"{scores['majority class']:.1f} %")
  trained, frozen = sizes
  shown.caption = (
      f"{trained:,} trained and {frozen:,} frozen parameters; "
      f"{seconds:.0f} s in all")
  console.Console(width=72).print(shown)


def _print_files(output_dir):
  for name, what in (
      ("prompt.npy", "the prompt, its card beside it (prompt.json)"),
      ("learning_curve.png", "loss and exact match over the run"),
      ("inference_eval", "predictions and metrics as JSONL")):
    print(f"  {os.path.join(output_dir, name)}: {what}")


def _print_commands(output_dir, bindings):
  def in_dir(name):
    return json.dumps(os.path.join(output_dir, name))

  task = [
      '--gin.MIXTURE_OR_TASK_NAME="docstring_package"',
      '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 8}',
      "--gin.PROMPT_LENGTH=20", f"--gin.PROMPT_FILE={in_dir('prompt.npy')}"]
  model = "--gin_file=prompt_tuning/configs/models/t5_1_1_default_prompt.gin"
  runs = "--gin_file=prompt_tuning/configs/runs/"
  commands = {
      "The same training as a plain command:":
          ["train", f"--gin_file={CONFIG}", *bindings],
      "Evaluate the exported prompt:":
          ["eval", model, f"{runs}prompt_eval.gin", *task,
           f"--gin.EVAL_OUTPUT_DIR={in_dir('eval')}"],
      "Predict with it:":
          ["infer", model, f"{runs}prompt_infer.gin", *task,
           f"--gin.INFER_OUTPUT_DIR={in_dir('infer')}"],
  }
  for title, (command, *arguments) in commands.items():
    words = [os.path.basename(sys.executable), "-m",
             f"prompt_tuning.{command}", *arguments]
    print(f"\n{title}\n  {shlex.join(words)}")


if __name__ == "__main__":
  main()
