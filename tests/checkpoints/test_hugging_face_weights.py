"""Reading and writing Hugging Face's T5 directories.

Oracle: transformers itself (the weights, and the logits of our own module on
what was read); without it, files written here tensor by tensor.
"""

import json
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import checkpoints
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.errors import UserError
from prompt_tuning.models import t5

BFLOAT16 = np.dtype(jnp.bfloat16)

def read_all(weights):
  out = {k: np.empty(v.shape, v.dtype) for k, v in weights.arrays.items()}
  for name, array in out.items():
    weights.read_into(name, array)
  return out


def assert_same(got, want):
  assert set(got) == set(want)
  for name in want:
    assert got[name].dtype == want[name].dtype, name
    assert np.asarray(got[name]).tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize("config", ["config", "config_1_0"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 20])
def test_what_is_saved_is_read(
    tmp_path, monkeypatch, config, dtype, block_bytes, small_t5):
  config = getattr(small_t5, config)
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
  params = small_t5.save(tmp_path / "m", config, dtype)
  weights = hugging_face.HuggingFaceWeights(tmp_path / "m")
  assert weights.config == config
  assert weights.unknown == ()
  assert_same(read_all(weights), small_t5.flat(params))
  assert sorted(os.listdir(tmp_path / "m")) == [
      "config.json", "model.safetensors"]


def test_names_and_orientation(tmp_path, small_t5):
  params = small_t5.save(tmp_path)
  stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  ours = small_t5.flat(params)
  name = "decoder.block.2.layer.1.EncDecAttention.k.weight"  # [out, in]
  np.testing.assert_array_equal(
      stored[name],
      ours["decoder/layers_2/encoder_decoder_attention/key/kernel"].T)
  assert stored[name].shape == (6, 8)
  np.testing.assert_array_equal(
      stored["shared.weight"], ours["token_embedder/embedding"])
  np.testing.assert_array_equal(
      stored["encoder.block.0.layer.0.SelfAttention."
             "relative_attention_bias.weight"],
      ours["encoder/relpos_bias/rel_embedding"].T)


def test_stacked_layers_are_saved_one_by_one(tmp_path, small_t5):
  params = small_t5.save(tmp_path, scan_layers=True)
  loaded = base.load_base(tmp_path, small_t5.abstract(scan_layers=True))
  assert_same(small_t5.flat(loaded), small_t5.flat(params))


def split_into_shards(folder):
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  os.remove(folder / "model.safetensors")
  names = sorted(tensors)
  where = {}
  for i in range(3):
    file = f"model-{i + 1:05d}-of-00003.safetensors"
    safetensors.numpy.save_file(
        {name: tensors[name] for name in names[i::3]}, folder / file)
    where.update(dict.fromkeys(names[i::3], file))
  (folder / "model.safetensors.index.json").write_text(
      json.dumps({"metadata": {}, "weight_map": where}))


def test_shards(tmp_path, small_t5):
  params = small_t5.save(tmp_path)
  split_into_shards(tmp_path)
  weights = hugging_face.HuggingFaceWeights(tmp_path)
  assert_same(read_all(weights), small_t5.flat(params))
  shard = tmp_path / "model-00002-of-00003.safetensors"
  tensors = safetensors.numpy.load_file(shard)
  lost = sorted(tensors)[0]
  del tensors[lost]
  safetensors.numpy.save_file(tensors, shard)
  with pytest.raises(UserError, match=f"00002-of-00003.*lacks {lost}"):
    hugging_face.HuggingFaceWeights(tmp_path)
  shard.unlink()
  with pytest.raises(UserError, match="00002-of-00003.* is missing"):
    hugging_face.HuggingFaceWeights(tmp_path)


def test_an_index_cannot_leave_the_folder(tmp_path, small_t5):
  small_t5.save(tmp_path / "m")
  os.rename(tmp_path / "m" / "model.safetensors", tmp_path / "x.safetensors")
  (tmp_path / "m" / "model.safetensors.index.json").write_text(
      json.dumps({"weight_map": {"shared.weight": "../x.safetensors"}}))
  with pytest.raises(UserError, match=r"index\.json.*x\.safetensors"):
    hugging_face.HuggingFaceWeights(tmp_path / "m")


def edit(folder, change):
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_copies_of_the_table_are_known(tmp_path, small_t5):
  params = small_t5.save(tmp_path, small_t5.config_1_0)

  def rename(tensors):
    table = tensors.pop("shared.weight")
    tensors["decoder.embed_tokens.weight"] = table
    tensors["lm_head.weight"] = table.copy()
    tensors["decoder.block.0.layer.1.EncDecAttention."
            "relative_attention_bias.weight"] = table.copy()
    tensors["qa_outputs.weight"] = table.copy()

  edit(tmp_path, rename)
  weights = hugging_face.HuggingFaceWeights(tmp_path)
  assert weights.unknown == ("qa_outputs.weight",)
  assert_same(read_all(weights), small_t5.flat(params))


def set_config(folder, **values):
  file = folder / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("values, tied", [
    ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False),
    ({"tie_word_embeddings": True, "scale_decoder_outputs": None}, True),
    ({"tie_word_embeddings": None, "scale_decoder_outputs": None}, True),
    ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
    ({"tie_word_embeddings": True, "model_type": "mt5"}, False)])
def test_which_models_tie_their_logits(tmp_path, values, tied, small_t5):
  small_t5.save(tmp_path)
  set_config(tmp_path, **values)
  content = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(
      json.dumps({k: v for k, v in content.items() if v is not None}))
  weights = hugging_face.HuggingFaceWeights(tmp_path)
  assert weights.config["tie_logits"] == tied
  assert ("decoder/logits_dense/kernel" in weights.arrays) != tied


# -------------------------------------------------------- against transformers


def model_of_transformers(**options):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  version = transformers.MT5Config if options.pop("mt5", False) else (
      transformers.T5Config)
  config = version(
      vocab_size=40, d_model=8, d_kv=3, d_ff=10, num_layers=2,
      num_decoder_layers=3, num_heads=2, relative_attention_num_buckets=6,
      relative_attention_max_distance=20, decoder_start_token_id=0, **options)
  model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
  for parameter in model.parameters():
    parameter.data = torch.randn_like(parameter) * 0.5
  return model


def logits_of_hugging_face(model, inputs, decoder_inputs):
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    return model(
        input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(
            decoder_inputs), attention_mask=torch.tensor(inputs > 0),
    ).logits.float().numpy()


def our_logits(small_t5, folder, inputs, decoder_inputs):
  config = hugging_face.HuggingFaceWeights(folder).config
  params = base.load_base(folder, small_t5.abstract(config), np.float32)
  return t5.EncoderDecoder(t5.Config(**config)).apply(
      {"params": params}, inputs, decoder_inputs, enable_dropout=False)


INPUTS = np.array([[5, 6, 7, 8, 1], [9, 30, 1, 0, 0]])
DECODER_INPUTS = np.array([[0, 4, 5], [0, 39, 2]])


@pytest.mark.parity
@pytest.mark.parametrize("options, untie", [
    ({"feed_forward_proj": "relu"}, False),
    ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, False),
    ({"feed_forward_proj": "gated-gelu", "mt5": True}, True)])
@pytest.mark.parametrize("shard_size", ["5GB", "4KB"])
def test_a_directory_that_transformers_wrote(
    tmp_path, small_t5, options, untie, shard_size):
  torch = pytest.importorskip("torch")
  model = model_of_transformers(**options)
  if untie:  # transformers 5 ties every new T5; published 1.1 weights are not
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 8))
  model.save_pretrained(tmp_path, max_shard_size=shard_size)
  assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
  np.testing.assert_allclose(
      our_logits(small_t5, tmp_path, INPUTS, DECODER_INPUTS),
      logits_of_hugging_face(model, INPUTS, DECODER_INPUTS), atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("config", ["config", "config_1_0"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_transformers_loads_what_we_save(tmp_path, config, dtype, small_t5):
  config = getattr(small_t5, config)
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  small_t5.save(tmp_path, config, dtype)
  model, report = transformers.T5ForConditionalGeneration.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  assert str(model.dtype) == f"torch.{np.dtype(dtype).name}"
  np.testing.assert_allclose(
      our_logits(small_t5, tmp_path, INPUTS, DECODER_INPUTS),
      logits_of_hugging_face(model.float(), INPUTS, DECODER_INPUTS),
      atol=2e-4, rtol=1e-5)  # these logits are around 30


# ------------------------------------------------------------------- bad input


@pytest.fixture
def saved(tmp_path, small_t5):
  small_t5.save(tmp_path)
  return tmp_path


def test_a_pickle_is_never_read(saved):
  os.rename(saved / "model.safetensors", saved / "pytorch_model.bin")
  with pytest.raises(UserError, match="never read; convert.*save_pretrained"):
    hugging_face.HuggingFaceWeights(saved)
  os.remove(saved / "pytorch_model.bin")
  with pytest.raises(UserError, match="has no weights"):
    hugging_face.HuggingFaceWeights(saved)


def test_truncated_weights_are_named(saved):
  file = saved / "model.safetensors"
  data = file.read_bytes()
  for length in [0, 1, 7, 8, 9, *range(10, len(data), 997), len(data) - 1]:
    file.write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
      read_all(hugging_face.HuggingFaceWeights(saved))


def test_a_header_that_claims_more_than_the_file(saved):
  file = saved / "model.safetensors"
  data = file.read_bytes()
  for claim in (len(data), 2**40, 2**63, 2**64 - 1):
    file.write_bytes(struct.pack("<Q", claim) + data[8:])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
      hugging_face.HuggingFaceWeights(saved)
  (length,) = struct.unpack("<Q", data[:8])
  header = json.loads(data[8:8 + length])
  header["shared.weight"]["shape"] = [10**9, 8]
  text = json.dumps(header).encode()
  file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    hugging_face.HuggingFaceWeights(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_ends_in_a_sentence_or_nowhere(saved, name):
  file = saved / name
  data = file.read_bytes()
  rng = np.random.default_rng(2)
  end = min(len(data), 3000)  # values may be anything: damage the header
  told = 0
  for _ in range(200):
    damaged = bytearray(data)
    for place in rng.integers(end, size=rng.integers(1, 4)):
      damaged[place] = rng.integers(256)
    file.write_bytes(damaged)
    try:
      read_all(hugging_face.HuggingFaceWeights(saved))
    except UserError as error:
      told += 1
      assert str(saved) in str(error)
  assert told > 50


@pytest.mark.parametrize("values, sentence", [
    ({"model_type": "umt5"}, "type 'umt5'"),
    ({"model_type": ["t5"]}, "type"),
    ({"feed_forward_proj": ["relu"]}, r"config\.json"),
    ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'"),
    ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
    ({"d_model": "8"}, "d_model '8'"), ({"num_heads": 0}, "num_heads 0"),
    ({"num_layers": True}, "num_layers True"),
    ({"vocab_size": 41}, "vocab_size 41.*40 rows")])
def test_a_config_that_is_not_read(saved, values, sentence):
  set_config(saved, **values)
  with pytest.raises(UserError, match=sentence):
    hugging_face.HuggingFaceWeights(saved)


def test_quantised_weights_are_refused(saved):
  def quantise(tensors):
    tensors["shared.weight"] = tensors["shared.weight"].astype(np.int8)

  edit(saved, quantise)
  with pytest.raises(UserError, match=r"shared\.weight as I8"):
    hugging_face.HuggingFaceWeights(saved)


def test_a_prompt_has_no_place_in_a_base_model(tmp_path, small_t5):
  params = small_t5.params()
  params["encoder"]["prompt"] = {"prompt": {"prompt": np.ones((2, 8))}}
  with pytest.raises(UserError, match="encoder/prompt/prompt/prompt"):
    hugging_face.save(
        tmp_path / "m", params, small_t5.config, np.float32, "t5")
  assert not (tmp_path / "m").exists()


def test_a_folder_that_cannot_be_made(tmp_path, small_t5):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot make the folder"):
    small_t5.save(tmp_path / "file" / "m")
