"""Writes tests/expectations/t5_*.npz by running Hugging Face's T5.

Run it from the repository root, where `torch` and `transformers` can be
imported: `python tests/make_t5_expectations.py`. Weights and inputs are drawn
again in the test from seeds, so that a file holds only names and shapes of the
weights, config.json, and what the model gave.
"""

import json
import pathlib

import numpy as np

# What makes each of these a model of its own.
CASES = {
    "1_0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"feed_forward_proj": "gated-gelu", "vocab_size": 61},
    "byt5": {
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "num_layers": 3, "num_decoder_layers": 1},
}

# Sizes that all differ, and positions beyond the last bucket.
SIZES = {
    "vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_heads": 2,
    "num_layers": 2, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "dropout_rate": 0.0,
    "decoder_start_token_id": 0}

PROMPT_LENGTH = 5


def batch(seed):
  """Padded inputs and targets with EOS, and a prompt.

  RandomState's stream never changes, whatever NumPy's version.
  """
  random = np.random.RandomState(seed)

  def sequences(lengths):
    rows = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(rows, lengths):
      row[:length] = [*random.randint(2, 40, length - 1), 1]
    return rows

  return {
      "inputs": sequences((17, 9, 2)),
      "targets": sequences((5, 15, 1)),
      "prompt": random.randn(
          PROMPT_LENGTH, SIZES["d_model"]).astype(np.float32)}


def weights(shapes, seed):
  """Weights under Hugging Face's names that give logits of about 1.

  Args:
    shapes: name -> shape, as Hugging Face stores it ([out, in]).
    seed: of the random numbers.

  Returns:
    name -> float32 array.
  """
  random = np.random.RandomState(seed)
  drawn = {}
  for name in sorted(shapes):
    array = random.randn(*shapes[name])
    if "layer_norm" in name:
      array = 1.0 + 0.2 * array
    elif "shared" not in name and "relative_attention_bias" not in name:
      array /= np.sqrt(shapes[name][-1])
    drawn[name] = array.astype(np.float32)
  return drawn


def model_of_transformers(case, seed):
  """The torch model of a case, with the weights of `seed`."""
  import torch
  import transformers

  version, model_class = (
      (transformers.MT5Config, transformers.MT5ForConditionalGeneration)
      if case == "mt5" else
      (transformers.T5Config, transformers.T5ForConditionalGeneration))
  model = model_class(version(**{**SIZES, **CASES[case]})).eval()
  if case != "1_0":  # transformers 5 ties every new T5
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  parameters = dict(model.named_parameters())
  for name, array in weights(_shapes(model), seed).items():
    parameters[name].data = torch.from_numpy(array)
  return model


def _shapes(model):
  return {name: tuple(p.shape) for name, p in model.named_parameters()}


def outputs_of_transformers(model, examples):
  """Logits and mean loss of a torch model, with and without the prompt.

  Args:
    model: from `model_of_transformers`.
    examples: from `batch`.

  Returns:
    `logits`, `logits_with_prompt` [real targets, V]; `loss`,
    `loss_with_prompt`, means over the real targets.
  """
  import torch

  inputs = torch.from_numpy(examples["inputs"]).long()
  targets = torch.from_numpy(examples["targets"]).long()
  labels = targets.masked_fill(targets == 0, -100)
  prompt = torch.from_numpy(examples["prompt"])
  embedded = model.get_input_embeddings()(inputs)
  with_prompt = torch.cat(
      [prompt.expand(len(inputs), *prompt.shape), embedded], 1)
  is_token = (inputs > 0).long()
  is_prompt = torch.ones(len(inputs), len(prompt), dtype=torch.long)
  found = {}
  with torch.no_grad():
    for suffix, x, mask in (
        ("", embedded, is_token),
        ("_with_prompt", with_prompt, torch.cat([is_prompt, is_token], 1))):
      out = model(inputs_embeds=x, attention_mask=mask, labels=labels)
      found["logits" + suffix] = out.logits[targets > 0].numpy()
      found["loss" + suffix] = out.loss.numpy()
  return found


def main():
  for seed, case in enumerate(CASES):
    model = model_of_transformers(case, seed)
    path = pathlib.Path(__file__).parent / "expectations" / f"t5_{case}.npz"
    np.savez_compressed(
        path, seed=seed, shapes=json.dumps(_shapes(model)),
        config=model.config.to_json_string(use_diff=False),
        **outputs_of_transformers(model, batch(seed)))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
