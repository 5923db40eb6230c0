"""Writes tests/expectations/instance.npz by running LOPA and IDPG in torch.

Run it from the repository root, with torch: `python
tests/make_instance_expectations.py`. The modules are `torch.nn.Linear`, dropout
and tanh in the order in which LOPA's code has them; weights and encodings are
drawn again in the test.
"""

import pathlib

import numpy as np

B, P, H, E, R = 2, 3, 6, 5, 2


def arrays():
  """Parameters as we name them, encodings [B, E] and a gradient [B, P, H]."""
  random = np.random.RandomState(0)

  def draw(*shape):
    return random.normal(0.0, 0.7, shape).astype(np.float32)

  def head(features):
    return {"hidden": {"kernel": draw(E, E), "bias": draw(E)},
            "out": {"kernel": draw(E, features), "bias": draw(features)}}

  lopa = {"shared": {"prompt": draw(P, H)}, "row": head(P * R),
          "column": head(H * R)}
  return lopa, {"own": head(P * H)}, draw(B, E), draw(B, P, H)


def in_torch():
  """Prompts of both methods, and gradients of <prompt, cotangent>."""
  import torch

  lopa, idpg, encoding, cotangent = arrays()
  leaves = {}

  def head(parts, name):
    layers = []
    for part in ("hidden", "out"):
      kernel, bias = parts[part]["kernel"], parts[part]["bias"]
      layer = torch.nn.Linear(*kernel.shape)
      layer.weight.data = torch.from_numpy(kernel.T.copy())
      layer.bias.data = torch.from_numpy(bias)
      leaves[f"{name}/{part}"] = layer
      layers.append(layer)
    return torch.nn.Sequential(
        torch.nn.Dropout(0.1), layers[0], torch.nn.Tanh(), layers[1]).eval()

  e = torch.from_numpy(encoding)
  shared = torch.from_numpy(lopa["shared"]["prompt"]).requires_grad_()
  rows = head(lopa["row"], "row")(e).view(B, P, R)
  columns = head(lopa["column"], "column")(e).view(B, H, R)
  gated = shared * torch.sigmoid(torch.bmm(rows, columns.transpose(1, 2)))
  own = head(idpg["own"], "own")(e).view(B, P, H)
  ((gated + own) * torch.from_numpy(cotangent)).sum().backward()
  found = {"lopa": gated.detach().numpy(), "idpg": own.detach().numpy(),
           "gradient/shared/prompt": shared.grad.numpy()}
  for name, layer in leaves.items():
    found[f"gradient/{name}/kernel"] = layer.weight.grad.numpy().T
    found[f"gradient/{name}/bias"] = layer.bias.grad.numpy()
  return found


if __name__ == "__main__":
  folder = pathlib.Path(__file__).parent / "expectations"
  np.savez_compressed(folder / "instance.npz", **in_torch())
