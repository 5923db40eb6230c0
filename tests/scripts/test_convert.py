"""Tests of scripts.convert. Oracles: each format's own reader, and T5X's."""

import json

import flax
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import families, hugging_face
from prompt_tuning.formats import card, npy, peft
from prompt_tuning.models import causal_lm, t5
from prompt_tuning.scripts import convert

PROMPT = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
VARIABLE = "encoder/prompt/prompt/prompt"


def write_base(folder, family, config, seed=0):
  pieces = families.of_type(family, "").weight_map(config, {})
  rng = np.random.default_rng(seed)
  params = flax.traverse_util.unflatten_dict(
      {path: rng.normal(size=piece.shape).astype(np.float32)
       for path, piece in pieces.items()}, sep="/")
  hugging_face.save(str(folder), params, config, "float32", family=family)
  return str(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """A T5 and a Llama of width 8, and a T5 of other weights."""
  root = tmp_path_factory.mktemp("bases")
  small = t5.Config(32, 8, 2, 4, 16, 2, 2)
  llama = causal_lm.Config(32, 8, 2, 4, 2, 12, num_kv_heads=2)
  return {
      "t5": write_base(root / "t5", "t5", small),
      "other": write_base(root / "other", "t5", small, 1),
      "llama": write_base(root / "llama", "llama", llama)}


@pytest.fixture
def prompt_file(tmp_path):
  path = str(tmp_path / "prompt.npy")
  npy.write(path, PROMPT)
  return path


def with_card(path, base):
  card.write_card(
      path, base_model="t5", base_fingerprint=base_lib.fingerprint(base),
      task="sst2", metric={"accuracy": 0.9}, step=7, settings={"a": 1})


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_around_all_formats(tmp_path, bases, prompt_file, family):
  """.npy -> PEFT -> T5X -> .npy."""
  base = bases[family]
  adapter, checkpoint = tmp_path / "adapter", tmp_path / "checkpoint_12"
  said = convert.convert(prompt_file, str(adapter), base)
  assert said == f"{adapter}: 3 x 8, a PEFT adapter"
  loaded = peft.load(adapter)
  assert loaded.config["task_type"] == (
      "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM")
  assert loaded.config["num_layers"] == 2
  convert.convert(str(adapter), str(checkpoint), base)
  weights = base_lib.open_base(checkpoint)
  side = "encoder" if family == "t5" else "decoder"
  assert list(weights.arrays) == [f"{side}/prompt/prompt/prompt"]
  assert weights.step == 12
  again = str(tmp_path / "again.npy")
  convert.convert(str(checkpoint), again, base)
  np.testing.assert_array_equal(npy.read(again), PROMPT)
  assert card.check(again, base_lib.fingerprint(base), base).base_model == (
      family)


def test_prefixes_are_known_by_their_width(tmp_path, bases):
  table = np.random.default_rng(0).normal(size=(3, 2 * 2 * 2 * 2))
  path, adapter = str(tmp_path / "prefix.npy"), tmp_path / "adapter"
  npy.write(path, table)
  convert.convert(path, str(adapter), bases["llama"])
  assert peft.load(adapter).type == "PREFIX_TUNING"
  again = str(tmp_path / "again.npy")
  convert.convert(str(adapter), again, bases["llama"])
  np.testing.assert_array_equal(npy.read(again), npy.read(path))
  with pytest.raises(errors.UserError, match="give --base"):
    convert.convert(str(adapter), str(tmp_path / "x.npy"))


def test_what_the_card_says_goes_along(tmp_path, bases, prompt_file):
  with_card(prompt_file, bases["t5"])
  known = card.read_card(card.card_path(prompt_file))
  variable = str(tmp_path / "checkpoint_7")
  convert.convert(prompt_file, variable)
  assert known.step == base_lib.open_base(variable).step
  with pytest.raises(errors.UserError, match="trained on the base model"):
    convert.convert(prompt_file, str(tmp_path / "x"), bases["other"])
  assert not (tmp_path / "x").exists()


def test_without_a_base_there_is_no_card(tmp_path, bases, prompt_file):
  adapter, again = str(tmp_path / "adapter"), str(tmp_path / "again.npy")
  convert.convert(prompt_file, adapter, bases["t5"])
  convert.convert(adapter, again)
  np.testing.assert_array_equal(npy.read(again), PROMPT)
  assert not (tmp_path / "again.json").exists()


def test_one_variable_of_a_checkpoint(tmp_path, prompt_file):
  checkpoint, again = tmp_path / "checkpoint_0", str(tmp_path / "again.npy")
  convert.convert(prompt_file, str(checkpoint))
  convert.convert(
      str(checkpoint / "target.encoder.prompt.prompt.prompt"), again)
  np.testing.assert_array_equal(npy.read(again), PROMPT)


def test_a_real_t5x_checkpoint_has_no_prompt(shared_data, tmp_path):
  with pytest.raises(errors.UserError, match="holds 0 prompts"):
    convert.convert(
        str(shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"),
        str(tmp_path / "x.npy"))


@pytest.mark.parity
def test_tensorstore_reads_the_variable(tmp_path, prompt_file):
  """T5X reads the same spec through it."""
  tensorstore = pytest.importorskip("tensorstore")
  checkpoint = tmp_path / "checkpoint_0"
  convert.convert(prompt_file, str(checkpoint))
  index = flax.serialization.msgpack_restore(
      (checkpoint / "checkpoint").read_bytes())
  spec = index["optimizer"]["target"]
  for name in VARIABLE.split("/"):
    spec = spec[name]
  assert (index["version"], int(index["optimizer"]["state"]["step"])) == (3, 0)
  stored = tensorstore.open({
      "driver": spec["driver"], "metadata": spec["metadata"], "kvstore": {
          "driver": "file", "path": str(checkpoint / spec["kvstore"]["path"])}
  }, open=True).result().read().result()
  np.testing.assert_array_equal(stored, PROMPT)


@pytest.fixture
def refused(capsys):
  """Runs the command, which must end in one sentence and status 2."""

  def run(*arguments):
    with pytest.raises(SystemExit) as leaving:
      convert.main([str(a) for a in arguments])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said

  return run


def test_the_command(tmp_path, prompt_file, bases, capsys):
  convert.main(["--from", prompt_file, "--to", str(tmp_path / "adapter"),
                "--base", bases["llama"]])
  assert capsys.readouterr().out.endswith("3 x 8, a PEFT adapter\n")


def test_bad_input(tmp_path, prompt_file, bases, refused):
  target = tmp_path / "made"
  before = sorted(tmp_path.iterdir())
  for arguments, words in (
      (("--from", tmp_path / "none", "--to", target), "There is no"),
      (("--from", prompt_file, "--to", target), "give --base"),
      (("--from", prompt_file, "--to", tmp_path / "b.npy"), "same format"),
      (("--from", tmp_path, "--to", target), "neither a .npy"),
      (("--from", prompt_file, "--to", target, "--base", tmp_path / "none"),
       "There is no checkpoint"),
      (("--from", prompt_file, "--to", prompt_file + "/checkpoint_1"),
       "cannot write")):
    assert words in refused(*arguments)
    assert sorted(tmp_path.iterdir()) == before
  taken = tmp_path / "checkpoint_1"
  taken.mkdir()
  assert "exists" in refused("--from", prompt_file, "--to", taken)
  narrow = str(tmp_path / "narrow.npy")
  npy.write(narrow, PROMPT[:, :6])
  assert "has width 6, and" in refused(
      "--from", narrow, "--to", target, "--base", bases["t5"])
  assert not target.exists()


def test_adapters_that_are_no_table(tmp_path, bases, prompt_file, refused):
  adapter = tmp_path / "adapter"
  convert.convert(prompt_file, str(adapter), bases["t5"])
  config = json.loads((adapter / "adapter_config.json").read_text())
  target = tmp_path / "made.npy"
  for content, words in (
      ({"peft_type": "LORA"}, "more than one table"),
      ({"peft_type": "CPT"}, "not supported"),
      (config | {"num_virtual_tokens": 4}, "4 x 2 rows are needed"),
      (config | {"task_type": "SEQ_CLS"}, "SEQ_CLS")):
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    with_base = ("--base", bases["t5"]) if "SEQ" in words else ()
    assert words in refused("--from", adapter, "--to", target, *with_base)
    assert not target.exists()
  (adapter / "adapter_config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(
      {"prompt_embeddings": np.ones((6, 4), np.float32)},
      adapter / "adapter_model.safetensors")
  assert "it was trained on 't5'" in refused(
      "--from", adapter, "--to", target, "--base", bases["t5"])
  assert not target.exists()
