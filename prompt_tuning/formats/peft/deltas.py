"""LoRA and (IA)3 between PEFT's tensors and ours.

PEFT stores a delta of each module that it changed; where that module is several
of our layers (`modules`), the delta is taken apart and put together.
"""

from collections.abc import Mapping
import re
from typing import Any

import flax
import numpy as np

from prompt_tuning import errors
from prompt_tuning.formats.peft import configs, modules
from prompt_tuning.formats.peft.base import Base
from prompt_tuning.formats.peft.files import Adapter
from prompt_tuning.methods import ia3, interception, lora

_ROOT = "base_model.model."
_NAME = {
    "LORA": re.compile(re.escape(_ROOT) + r"(.+)\.(lora_[AB])\.weight"),
    "IA3": re.compile(re.escape(_ROOT) + r"(.+)\.(ia3_l)")}
_NO_PATTERN = re.compile(r"[\w.-]+")


def to_params(adapter: Adapter, base: Base) -> dict[str, Any]:
  """See `peft.to_params`. Layers are unrolled."""
  flat = {}
  if adapter.type == "LORA":
    rank, scale = _size(adapter, base)
    for module, a, b in _loras(adapter, base, scale):
      widths = [len(part) for part in module.parts.values()]
      pairs = lora.from_fused(a, b[:, module.order], widths)
      for path, (a_part, b_part) in zip(module.parts, pairs):
        spare = rank - a_part.shape[1]  # one Lora has one rank for all
        flat[f"{path}/lora/a"] = np.pad(a_part, ((0, 0), (0, spare)))
        flat[f"{path}/lora/b"] = np.pad(b_part, ((0, spare), (0, 0)))
  else:
    for module, scale, of_input in _scales(adapter, base):
      for path, outputs in module.parts.items():
        flat[f"{path}/ia3/scale"] = scale if of_input else scale[outputs]
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def delta(adapter: Adapter, base: Base):
  """See `peft.delta`."""
  if adapter.type == "LORA":
    rank, scale = _size(adapter, base)
    paths = [path for module, _, _ in _loras(adapter, base, scale)
             for path in module.parts]
    return lora.Lora(
        rank, scale * rank, tuple(map(re.escape, paths)),
        float(adapter.config["lora_dropout"] or 0))
  paths = {False: [], True: []}
  for module, _, of_input in _scales(adapter, base):
    paths[of_input] += map(re.escape, module.parts)
  return ia3.Ia3(tuple(paths[False]), tuple(paths[True]))


def from_params(
    params: Mapping[str, Any], base: Base, kind: str, method,
    fields: Mapping[str, Any],
) -> Adapter:
  """See `peft.from_params`."""
  scope = {"LORA": lora.SCOPE, "IA3": ia3.SCOPE}[kind]
  if method is None:
    raise errors.UserError(
        f"{kind} needs the delta that was trained, for its settings: give "
        "from_params the model's `delta`.")
  if kind == "LORA":
    params = method.unshared(params)
  ours = _by_layer(params, scope)
  chosen, left = [], set(ours)
  for module in base.modules.values():
    own = {path: ours[path] for path in module.parts if path in ours}
    left -= set(own)
    if own:
      chosen.append((module, own))
  if left or not chosen:
    raise errors.UserError(
        f"{base.name} has no modules for the {kind} of {sorted(left)[:3]}: "
        "give the base model that the parameters were trained on.")
  write = _from_loras if kind == "LORA" else _from_scales
  tensors, config = write(chosen, base, method)
  config |= {
      "base_model_name_or_path": base.name, "task_type": base.task,
      "fan_in_fan_out": any(m.fan_in_fan_out for m, _ in chosen)}
  return Adapter(kind, configs.of(kind, config | dict(fields)), tensors)


# ------------------------------------------------------------------ from PEFT


def _by_module(adapter: Adapter, base: Base):
  """The adapter's tensors in float32: (module, {name within it: tensor})."""
  found = {}
  for name, tensor in adapter.tensors.items():
    match = _NAME[adapter.type].fullmatch(name)
    if match is None:
      raise errors.UserError(
          f"{adapter.path} holds {name}, which {adapter.type} here does not "
          "have: load it with PEFT, merge it (merge_and_unload) and save the "
          "whole model.")
    if match[1] not in base.modules:
      base.refuse(adapter, f"changes {match[1]}, which the model has not")
    own = found.setdefault(match[1], {})
    own[match[2]] = tensor.astype(np.float32)
  return [(base.modules[name], own) for name, own in sorted(found.items())]


def _size(adapter: Adapter, base: Base) -> tuple[int, float]:
  """The largest rank, and alpha / R of modules without a pattern."""
  ranks = [own["lora_A"].shape[0] for _, own in _by_module(adapter, base)
           if own.get("lora_A", np.empty(())).ndim == 2]
  rank, alpha = adapter.config["r"], adapter.config["lora_alpha"]
  return max(ranks, default=1), _scale(adapter, rank, alpha) or 1.0


def _scale(adapter: Adapter, rank, alpha) -> float:
  if (type(rank) is not int or rank < 1 or type(alpha) not in (int, float)):
    raise errors.UserError(
        f"{adapter.path} has r {rank!r} and lora_alpha {alpha!r}: the one "
        "must be a positive whole number, the other a number; copy the "
        "adapter again.")
  return alpha / (rank**0.5 if adapter.config["use_rslora"] else rank)


def _loras(adapter: Adapter, base: Base, scale: float):
  """Yields (module, a [in, R], b [R, out]), b for one `scale` of all."""
  config = adapter.config
  for module, own in _by_module(adapter, base):
    rank = _of_pattern(adapter, "rank_pattern", module.name, config["r"])
    alpha = _of_pattern(
        adapter, "alpha_pattern", module.name, config["lora_alpha"])
    factor = _scale(adapter, rank, alpha) / scale
    for part, shape in (("lora_A", (rank, module.inputs)),
                        ("lora_B", (module.outputs, rank))):
      if part not in own or own[part].shape != shape:
        base.refuse(
            adapter, f"has {part} of {module.name} "
            f"{own[part].shape if part in own else 'missing'}, and {shape} is "
            "needed")
    yield module, own["lora_A"].T, own["lora_B"].T * np.float32(factor)


def _of_pattern(adapter: Adapter, field: str, name: str, default):
  """What `rank_pattern` or `alpha_pattern` has for a module.

  PEFT takes its keys for regular expressions. They are from the file, so only
  plain names are taken here: an expression can take for ever to match.
  """
  for key, value in (adapter.config[field] or {}).items():
    ending = key.removeprefix("^").replace("\\.", ".")
    if not _NO_PATTERN.fullmatch(ending):
      raise errors.UserError(
          f"{adapter.path} has the expression {key!r} in {field}: only names "
          "of modules are read, write out which it means.")
    whole = key.startswith("^")
    if name == ending if whole else modules.ends_in(name, ending):
      return value
  return default


def _scales(adapter: Adapter, base: Base):
  """Yields (module, scale [out] or [in], whether it is of the input)."""
  for module, own in _by_module(adapter, base):
    scale = own["ia3_l"]
    if scale.shape not in ((module.outputs, 1), (1, module.inputs)):
      base.refuse(
          adapter, f"has ia3_l of {module.name} {scale.shape}, and "
          f"({module.outputs}, 1) or (1, {module.inputs}) is needed")
    yield module, scale.ravel(), scale.shape[0] == 1


# -------------------------------------------------------------------- to PEFT


def _by_layer(params: Mapping[str, Any], scope: str) -> dict[str, dict]:
  """{layer: {name: array}} of a method, scanned layers taken apart."""
  found = {}
  for path, value in flax.traverse_util.flatten_dict(
      dict(params), sep="/").items():
    layer, _, name = path.rpartition(f"/{scope}/")
    if not layer:
      continue
    value = np.asarray(value, np.float32)
    if "/layers/" in layer:
      for i, one in enumerate(value):
        numbered = layer.replace("/layers/", f"/layers_{i}/")
        found.setdefault(numbered, {})[name] = one
    else:
      found.setdefault(layer, {})[name] = value
  return found


def _from_loras(chosen, base: Base, method: lora.Lora):
  pairs = {
      module.name: [
          (own[path]["a"], own[path]["b"]) if path in own else None
          for path in module.parts] for module, own in chosen}
  fused = [p for p in pairs.values() if len(p) > 1]
  tied = all(lora.shared_a(p) for p in fused)
  tensors, ranks = {}, {}
  for module, _ in chosen:
    widths = [len(part) for part in module.parts.values()]
    a, b = lora.to_fused(pairs[module.name], widths, tied)
    whole = np.zeros((module.outputs, len(b)), np.float32)
    whole[module.order] = b.T
    tensors |= {f"{_ROOT}{module.name}.lora_A.weight": a.T,
                f"{_ROOT}{module.name}.lora_B.weight": whole}
    ranks.setdefault(len(b), []).append(module.name)
  common = max(ranks, key=lambda rank: len(ranks[rank]))
  config = {
      "r": common, "lora_alpha": _whole(method.scale * common),
      "lora_dropout": method.dropout,
      "target_modules": modules.targets(
          [name for names in ranks.values() for name in names], base.modules)}
  config["rank_pattern"] = {
      ending: rank for rank, names in ranks.items() if rank != common
      for ending in modules.targets(names, base.modules)}
  config["alpha_pattern"] = {
      ending: _whole(method.scale * rank)
      for ending, rank in config["rank_pattern"].items()}
  return tensors, config


def _whole(number: float) -> int | float:
  """An alpha as people write it."""
  return int(number) if float(number).is_integer() else number


def _from_scales(chosen, base: Base, method: ia3.Ia3):
  tensors, names = {}, {False: [], True: []}
  for module, own in chosen:
    of_input = {
        interception.matches(method.feedforward_targets, path) for path in own}
    scales = {path: own[path]["scale"] for path in own}
    if of_input == {True}:
      first, *others = scales.values()
      if len(own) < len(module.parts) or any(
          not np.array_equal(first, other) for other in others):
        raise errors.UserError(
            f"{' and '.join(module.parts)} are one module {module.name} in "
            "PEFT, whose input has one scale, and theirs differ: it can only "
            "be used here, or merged.")
      tensor = first[None]
    elif of_input == {False}:
      tensor = np.ones((module.outputs, 1), np.float32)
      for path, scale in scales.items():
        tensor[module.parts[path], 0] = scale
    else:
      raise errors.UserError(
          f"{' and '.join(own)} are one module {module.name} in PEFT, and only "
          "one has its input scaled: it can only be used here, or merged.")
    tensors[f"{_ROOT}{module.name}.ia3_l"] = tensor
    names[of_input == {True}].append(module.name)
  feedforward = modules.targets(names[True], base.modules)
  return tensors, {
      "feedforward_modules": feedforward,
      "target_modules": sorted({
          *modules.targets(names[False], base.modules), *feedforward})}
