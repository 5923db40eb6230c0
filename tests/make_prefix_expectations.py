"""Writes tests/expectations/prefix_*.npz by running Hugging Face's models.

Run it from the repository root, where `torch` and `transformers` can be
imported: `python tests/make_prefix_expectations.py`. A prefix goes in as
`past_key_values`; texts, weights and prefix are drawn again in the test.
"""

import pathlib

import make_causal_lm_expectations as maker
import numpy as np

CASES = ("gpt2", "llama")  # learned positions; rotation and grouped heads
LENGTH = 4


def drawn(rows, width, logits):
  """A prefix [P, rows * width] and weights of the logits, for a gradient."""
  random = np.random.RandomState(5)
  return (random.randn(LENGTH, rows * width).astype(np.float32),
          random.randn(*logits).astype(np.float32))


def of_transformers(case, seed):
  """Logits [B, T, V] behind the prefix, and the table's gradient.

  The sum of the seen logits times random weights is what is differentiated.
  The text stands at positions P, P + 1, …, which is what GPT-2's authors of
  prefix tuning had.
  """
  import torch
  import transformers

  model = maker.model_of_transformers(case, seed)
  config = model.config
  ids, visible, _ = maker.tokens(seed, config.hidden_size)
  heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
  width = config.hidden_size // config.num_attention_heads
  table, weights = drawn(
      2 * config.num_hidden_layers * heads, width,
      (*ids.shape, maker.VOCABULARY))
  table = torch.from_numpy(table).requires_grad_()
  parts = table.reshape(LENGTH, config.num_hidden_layers, 2, heads, width)
  parts = parts.permute(1, 2, 3, 0, 4)  # [L, 2, K, P, D]
  cache = transformers.DynamicCache()
  for i, pair in enumerate(parts):
    keys, values = (
        part.expand(len(ids), *part.shape) for part in pair)
    cache.update(keys, values, i)
  seen = torch.from_numpy(visible)
  mask = torch.cat([torch.ones(len(ids), LENGTH), seen.float()], 1).long()
  positions = LENGTH + torch.arange(ids.shape[1]).expand(ids.shape)
  logits = model(
      torch.from_numpy(ids).long(), attention_mask=mask,
      position_ids=positions, past_key_values=cache, use_cache=True).logits
  (logits * torch.from_numpy(weights))[seen].sum().backward()
  return logits.detach().numpy(), table.grad.numpy()


def main():
  for case in CASES:
    folder = pathlib.Path(__file__).parent / "expectations"
    with np.load(folder / f"causal_lm_{case}.npz") as file:
      seed = int(file["seed"])
    logits, gradient = of_transformers(case, seed)
    _, visible, _ = maker.tokens(seed)
    path = folder / f"prefix_{case}.npz"
    np.savez_compressed(path, logits=logits[visible], gradient=gradient)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
