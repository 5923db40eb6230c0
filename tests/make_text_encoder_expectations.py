"""Writes tests/expectations/{text_encoder,masked_lm}_*.npz with transformers.

Run it from the repository root, where `torch` and `transformers` can be
imported: `python tests/make_text_encoder_expectations.py`. Weights and inputs
are drawn again in the test from seeds, so that a file holds only names and
shapes of the weights, config.json, and what the model gave.
"""

import json
import pathlib

import numpy as np

VOCABULARY = 41
WIDTH = 24

_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 3}

# A family's `model_type` and what makes each case a model of its own.
CASES = {
    "bert": ("bert", _SIZES | {"max_position_embeddings": 20}),
    "bert_tanh_gelu": ("bert", _SIZES | {
        "max_position_embeddings": 20, "hidden_act": "gelu_new",
        "type_vocab_size": 3, "layer_norm_eps": 1e-3}),
    "roberta": ("roberta", _SIZES | {
        "max_position_embeddings": 22, "pad_token_id": 1,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
}


def tokens(seed, padding):
  """Texts of several lengths, padded on the right.

  RandomState's stream never changes, whatever NumPy's version.

  Args:
    seed: of the random numbers.
    padding: the id that pads; no text has it.

  Returns:
    tokens [B, T] int32, visible [B, T] bool.
  """
  random = np.random.RandomState(seed)
  lengths = (14, 9, 2)
  drawn = random.randint(3, VOCABULARY, (len(lengths), max(lengths)))
  visible = np.arange(max(lengths)) < np.array(lengths)[:, None]
  return np.where(visible, drawn, padding).astype(np.int32), visible


def weights(shapes, seed):
  """Weights under Hugging Face's names that give states of about 1.

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


def model_of_transformers(case, seed, auto_class="AutoModel"):
  """The torch model of a case, with the weights of `seed`, in eval mode."""
  import torch
  import transformers

  kind, options = CASES[case]
  config = transformers.AutoConfig.for_model(kind, **options)
  model = getattr(transformers, auto_class).from_config(config).eval()
  parameters = dict(model.named_parameters())
  for name, array in weights(shapes_of(model), seed).items():
    parameters[name].data = torch.from_numpy(array)
  return model


def shapes_of(model):
  """Name -> shape of a torch model's parameters."""
  return {name: tuple(p.shape) for name, p in model.named_parameters()}


def states_of_transformers(model, ids, visible):
  """Last hidden states of padded text: [B, T, H] float32."""
  import torch

  with torch.no_grad():
    out = model(input_ids=torch.from_numpy(ids).long(),
                attention_mask=torch.from_numpy(visible).long())
  return out.last_hidden_state.numpy()


def masked(seed, padding):
  """The texts of `tokens`, the places of their masks, and a prompt.

  Returns:
    tokens [B, T], visible [B, T], places [B, 1], prompt [5, H].
  """
  ids, visible = tokens(seed, padding)
  random = np.random.RandomState(seed)
  places = random.randint(0, visible.sum(1))[:, None].astype(np.int32)
  return ids, visible, places, random.randn(5, WIDTH).astype(np.float32)


def logits_of_transformers(model, ids, visible, places, prompt=None):
  """Logits at one place of each text, [B, V], behind a prompt if given."""
  import torch

  embedded = model.get_input_embeddings()(torch.from_numpy(ids).long())
  mask = torch.from_numpy(visible).long()
  if prompt is not None:
    prompt = torch.from_numpy(prompt).expand(len(ids), *prompt.shape)
    embedded = torch.cat([prompt, embedded], 1)
    mask = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.long), mask], 1)
  with torch.no_grad():
    logits = model(inputs_embeds=embedded, attention_mask=mask).logits
  logits = logits[:, -ids.shape[1]:].numpy()
  return np.take_along_axis(logits, places[..., None], axis=1)[:, 0]


def write_masked_lm():
  """RoBERTa with its head."""
  model = model_of_transformers("roberta", 11, "AutoModelForMaskedLM")
  model.config.architectures = [type(model).__name__]  # as saving does
  *texts, prompt = masked(11, model.config.pad_token_id)
  path = pathlib.Path(__file__).parent / "expectations"
  path /= "masked_lm_roberta.npz"
  np.savez_compressed(
      path, seed=11, shapes=json.dumps(shapes_of(model)),
      config=model.config.to_json_string(use_diff=False),
      logits=logits_of_transformers(model, *texts),
      logits_with_prompt=logits_of_transformers(model, *texts, prompt))
  print(f"{path}: {path.stat().st_size} bytes")


def main():
  write_masked_lm()
  for seed, case in enumerate(CASES):
    model = model_of_transformers(case, seed)
    ids, visible = tokens(seed, model.config.pad_token_id)
    path = pathlib.Path(__file__).parent / "expectations"
    path /= f"text_encoder_{case}.npz"
    np.savez_compressed(
        path, seed=seed, shapes=json.dumps(shapes_of(model)),
        config=model.config.to_json_string(use_diff=False),
        states=states_of_transformers(model, ids, visible)[visible])
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
