"""A tiny decoder-only model, and small files of code, tables and labels."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, write_tiny_lm):
  """A Hugging Face directory: random weights, a tokenizer of bytes."""
  return write_tiny_lm(
      tmp_path_factory.mktemp("tiny_llama"),
      ["def f(x):\n    return x + 1\n", "assert f(1) == 2\n[/ANSWER]\n"] * 9,
      300, max_positions=256)


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
