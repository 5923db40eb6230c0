"""A tiny decoder-only model, and small files of code, tables and labels."""

import json

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import hugging_face
from prompt_tuning.models import causal_lm, decoder_only


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
  """A Hugging Face directory: random weights, a tokenizer of bytes."""
  import tokenizers as library

  folder = tmp_path_factory.mktemp("tiny_llama")
  tokenizer = library.Tokenizer(library.models.BPE())
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(
      add_prefix_space=False)
  tokenizer.decoder = library.decoders.ByteLevel()
  tokenizer.train_from_iterator(
      ["def f(x):\n    return x + 1\n", "assert f(1) == 2\n[/ANSWER]\n"] * 9,
      library.trainers.BpeTrainer(
          vocab_size=300, special_tokens=["</s>"], show_progress=False,
          initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  config = causal_lm.Config(
      tokenizer.get_vocab_size(), 8, 1, 2, 4, 16, max_positions=256)
  shapes, _ = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(config), None).abstract()
  draw = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: draw.normal(1.0 if len(s.shape) == 1 else 0.0, 0.3, s.shape)
      .astype(np.float32), shapes)
  hugging_face.save(folder, params, config, "float32")
  return folder


@pytest.fixture(scope="session")
def code_data(tmp_path_factory):
  """A folder with small files of every task."""
  folder = tmp_path_factory.mktemp("code_data")

  def write(name, rows):
    (folder / name).write_text(
        "".join(json.dumps(row) + "\n" for row in rows))

  write("mbpp.jsonl", [
      {"task_id": f"MBPP/{i}",
       "prompt": f"\n\ndef f(x):\n  \"\"\"{'a' * i}\"\"\"\n",
       "canonical_solution": f"  return x + {i}", "entry_point": "f",
       "test": f"def check(f):\n  assert f(1) == {i + 1}\n"}
      for i in range(20)])
  write("cruxeval.jsonl", [
      {"id": f"sample_{i}", "code": f"def f(x):\n    return x + {i}",
       "input": "1", "output": str(i + 1)} for i in range(20)])
  for name in ("train", "dev"):
    (folder / f"{name}.tsv").write_text("".join(
        f"x is {i}\t{i % 2}\n" for i in range(24)))
  for name in ("train", "dev", "test"):
    write(f"{name}_formatted.jsonl", [
        {"context": f"x : is : {i // 2}", "completion": f"x is {i} .",
         "cate": i < 6} for i in range(20)])
  return folder
