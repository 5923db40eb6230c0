"""Writes tests/expectations/causal_lm_*.npz by running Hugging Face's models.

Run it from the repository root, where `torch` and `transformers` can be
imported: `python tests/make_causal_lm_expectations.py`. Weights and inputs are
drawn again in the test from seeds, so that a file holds only names and shapes
of the weights, config.json, and what the model gave.
"""

import json
import pathlib

import numpy as np

VOCABULARY = 41
WIDTH = 24

_LLAMA = {
    "hidden_size": WIDTH, "intermediate_size": 28, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2}
_CODEGEN = {
    "n_embd": 32, "n_head": 8, "rotary_dim": 2, "n_layer": 2, "n_inner": 28}

# A family's `model_type` and what makes each case a model of its own.
CASES = {
    "gpt2": ("gpt2", {
        "n_embd": WIDTH, "n_head": 3, "n_layer": 2, "n_positions": 30}),
    "gpt2_untied": ("gpt2", {
        "n_embd": WIDTH, "n_head": 3, "n_layer": 1, "n_positions": 30,
        "n_inner": 28, "activation_function": "gelu",
        "tie_word_embeddings": False}),
    "llama": ("llama", _LLAMA),
    "llama3": ("llama", _LLAMA | {
        # Wavelengths of 6, 63, 628, 6283: kept, between, divided, divided.
        "head_dim": 8, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}),
    "deepseek_coder": ("llama", _LLAMA | {
        "num_key_value_heads": 4, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}}),
    "smollm2": ("llama", _LLAMA | {
        "num_attention_heads": 3, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    "llama_biases": ("llama", _LLAMA | {
        "attention_bias": True, "mlp_bias": True}),
    "phi": ("phi", {
        "hidden_size": WIDTH, "intermediate_size": 28, "num_hidden_layers": 2,
        "num_attention_heads": 3, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75}}),
    "phi3": ("phi3", _LLAMA | {"pad_token_id": 0}),
    "phi3_window": ("phi3", _LLAMA | {
        "sliding_window": 5, "pad_token_id": 0,
        "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "codegen": ("codegen", _CODEGEN),
    "codegen2": ("codegen", _CODEGEN),  # see `regrouped`
    "bloom": ("bloom", {
        "hidden_size": WIDTH, "n_head": 3, "n_layer": 2}),
}


def tokens(seed, width=WIDTH):
  """Texts of several lengths, padded on the right, and a prompt.

  RandomState's stream never changes, whatever NumPy's version.

  Args:
    seed: of the random numbers.
    width: H.

  Returns:
    tokens [B, T], visible [B, T], prompt [5, H].
  """
  random = np.random.RandomState(seed)
  lengths = (14, 9, 2)
  drawn = random.randint(0, VOCABULARY, (len(lengths), max(lengths)))
  visible = np.arange(max(lengths)) < np.array(lengths)[:, None]
  prompt = random.randn(5, width).astype(np.float32)
  return np.where(visible, drawn, 0).astype(np.int32), visible, prompt


def left_padded(array, visible):
  """Rows [B, T, ...] of right-padded text, moved to the right end."""
  moved = [np.roll(row, -int(seen.sum()) % len(row), axis=0)
           for row, seen in zip(array, visible)]
  return np.stack(moved)


def weights(shapes, seed):
  """Weights under Hugging Face's names that give logits of about 1.

  Args:
    shapes: name -> shape, as Hugging Face stores it.
    seed: of the random numbers.

  Returns:
    name -> float32 array.
  """
  random = np.random.RandomState(seed)
  drawn = {}
  for name in sorted(shapes):
    array = random.randn(*shapes[name])
    if name.endswith("bias"):
      array *= 0.3
    elif len(shapes[name]) == 1:  # a norm
      array = 1.0 + 0.2 * array
    else:
      array /= np.sqrt(min(shapes[name]))
    drawn[name] = array.astype(np.float32)
  return drawn


def regrouped(drawn, heads=8):
  """CodeGen's weights as CodeGen2-3.7B stores them: 8 groups instead of 4."""
  def change(array):
    width = array.shape[-1]
    parts = array.reshape(4, 3, -1, width).swapaxes(0, 1)  # [3, 4, rows, H]
    parts = parts.reshape(3, heads, -1, width)  # a head's rows
    return parts.reshape(3, 8, -1, width).swapaxes(0, 1).reshape(array.shape)

  return {name: change(array) if "qkv_proj" in name else array
          for name, array in drawn.items()}


def stored(case, drawn, content):
  """What a directory of the case holds: tensors and config.json's content."""
  if case == "codegen2":
    return regrouped(drawn), {**content, "head_dim": 4}
  return drawn, content


def model_of_transformers(case, seed):
  """The torch model of a case, with the weights of `seed`."""
  import torch
  import transformers

  kind, options = CASES[case]
  config = transformers.AutoConfig.for_model(
      kind, **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2,
               **options})
  config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  parameters = dict(model.named_parameters())
  for name, array in weights(shapes_of(model), seed).items():
    parameters[name].data = torch.from_numpy(array)
  return model


def shapes_of(model):
  """Name -> shape of a torch model's parameters."""
  return {name: tuple(p.shape) for name, p in model.named_parameters()}


def logits_of_transformers(model, ids, visible, prompt=None):
  """Logits of padded text, behind a prompt if there is one.

  Positions are counted over what is seen, so that padding on either side does
  not matter; BLOOM counts them so itself.

  Args:
    model: from `model_of_transformers`.
    ids: [B, T].
    visible: [B, T] bool.
    prompt: [P, H].

  Returns:
    [B, T, V] float32.
  """
  import torch

  embedded = model.get_input_embeddings()(torch.from_numpy(ids).long())
  mask = torch.from_numpy(visible).long()
  if prompt is not None:
    prompt = torch.from_numpy(prompt).expand(len(ids), *prompt.shape)
    embedded = torch.cat([prompt, embedded], 1)
    mask = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.long), mask], 1)
  positions = {} if model.config.model_type == "bloom" else {
      "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
  with torch.no_grad():
    out = model(inputs_embeds=embedded, attention_mask=mask, **positions)
  return out.logits[:, -ids.shape[1]:].numpy()


def main():
  for seed, case in enumerate(CASES):
    model = model_of_transformers(case, seed)
    ids, visible, prompt = tokens(seed, model.config.hidden_size)
    path = pathlib.Path(__file__).parent / "expectations"
    path /= f"causal_lm_{case}.npz"
    np.savez_compressed(
        path, seed=seed, shapes=json.dumps(shapes_of(model)),
        config=model.config.to_json_string(use_diff=False),
        logits=logits_of_transformers(model, ids, visible)[visible],
        logits_with_prompt=logits_of_transformers(
            model, ids, visible, prompt)[visible])
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
