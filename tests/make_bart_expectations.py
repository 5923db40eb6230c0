"""Writes tests/expectations/bart_*.npz by running Hugging Face's BART.

Run it from the repository root, where `torch` and `transformers` can be
imported: `python tests/make_bart_expectations.py`. Weights and inputs are drawn
again in the test from seeds, so that a file holds only names and shapes of the
weights, config.json, and what the model gave.
"""

import json
import pathlib

import numpy as np

# What makes each of these a model of its own.
CASES = {
    "plain": {},
    "scaled": {
        "scale_embedding": True, "activation_function": "relu",
        "encoder_layers": 3, "decoder_layers": 1, "decoder_start_token_id": 0},
}

SIZES = {
    "vocab_size": 40, "d_model": 16, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2,
    "max_position_embeddings": 24, "dropout": 0.0,
    "forced_eos_token_id": None}

PAD, EOS = 1, 2
PROMPT_LENGTH = 5

# Searches in transformers' words; both cut at so many tokens behind the start.
NEW_TOKENS = 10
SEARCHES = {
    "e2e": {"num_beams": 5, "length_penalty": 1.0, "early_stopping": False,
            "bad_words_ids": [[7], [9], [4, 5]]},
    "xsum": {"num_beams": 6, "length_penalty": 0.8, "early_stopping": True,
             "min_new_tokens": 4, "no_repeat_ngram_size": 3,
             "forced_bos_token_id": 0, "forced_eos_token_id": EOS},
}


def batch(seed):
  """Framed texts, padded inputs and targets, and a prompt.

  RandomState's stream never changes, whatever NumPy's version.
  """
  random = np.random.RandomState(seed)

  def sequences(lengths):
    rows = np.full((len(lengths), max(lengths)), PAD, np.int32)
    for row, length in zip(rows, lengths):
      row[:length] = [0, *random.randint(3, 40, length - 2), EOS]
    return rows

  return {
      "inputs": sequences((17, 9, 2)),
      "targets": sequences((5, 15, 2)),
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
    if "norm" in name and name.endswith("weight"):
      array = 1.0 + 0.2 * array
    elif name == "model.shared.weight":
      array /= 2.0
    elif len(shapes[name]) == 2 and "embed" not in name and (
        name != "final_logits_bias"):
      array /= np.sqrt(shapes[name][-1])
    drawn[name] = array.astype(np.float32)
  return drawn


def model_of_transformers(case, seed):
  """The torch model of a case, with the weights of `seed`."""
  import torch
  import transformers

  model = transformers.BartForConditionalGeneration(
      transformers.BartConfig(**{**SIZES, **CASES[case]})).eval()
  for name, array in weights(shapes(model), seed).items():
    model.get_parameter_or_buffer(name).data = torch.from_numpy(array)
  return model


def shapes(model):
  """Of the parameters, and of the bias that is none to torch."""
  found = {name: tuple(p.shape) for name, p in model.named_parameters()}
  return found | {"final_logits_bias": tuple(model.final_logits_bias.shape)}


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
  labels = targets.masked_fill(targets == PAD, -100)
  prompt = torch.from_numpy(examples["prompt"])
  embedded = model.get_input_embeddings()(inputs)
  with_prompt = torch.cat(
      [prompt.expand(len(inputs), *prompt.shape), embedded], 1)
  is_token = (inputs != PAD).long()
  is_prompt = torch.ones(len(inputs), len(prompt), dtype=torch.long)
  found = {}
  with torch.no_grad():
    for suffix, x, mask in (
        ("", embedded, is_token),
        ("_with_prompt", with_prompt, torch.cat([is_prompt, is_token], 1))):
      out = model(inputs_embeds=x, attention_mask=mask, labels=labels)
      found["logits" + suffix] = out.logits[targets != PAD].numpy()
      found["loss" + suffix] = out.loss.numpy()
  return found


def searches_of_transformers(model, examples):
  """The best hypothesis of each input, and its score.

  Returns:
    `e2e`, `xsum`: [3, NEW_TOKENS], 0 after the end; `e2e_scores`, ….
  """
  import torch

  inputs = torch.from_numpy(examples["inputs"]).long()
  found = {}
  for name, options in SEARCHES.items():
    with torch.no_grad():
      out = model.generate(
          inputs, attention_mask=(inputs != PAD).long(), do_sample=False,
          max_new_tokens=NEW_TOKENS, return_dict_in_generate=True,
          output_scores=True, **options)
    tokens = out.sequences[:, 1:].numpy()
    ended = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
    found[name] = np.pad(
        np.where(ended, 0, tokens),
        ((0, 0), (0, NEW_TOKENS - tokens.shape[1])))
    found[f"{name}_scores"] = out.sequences_scores.numpy()
  return found


def main():
  for seed, case in enumerate(CASES):
    model = model_of_transformers(case, seed)
    path = pathlib.Path(__file__).parent / "expectations" / f"bart_{case}.npz"
    np.savez_compressed(
        path, seed=seed, shapes=json.dumps(shapes(model)),
        config=model.config.to_json_string(use_diff=False),
        **outputs_of_transformers(model, batch(seed)),
        **searches_of_transformers(model, batch(seed)))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
