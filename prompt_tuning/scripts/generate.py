"""Texts for all examples: `python -m prompt_tuning.scripts.generate`.

For answers that are judged by other programs: several samples of each example,
stop strings, and the files that a benchmark reads. In GENERATE_OUTPUT_DIR:

    {task}-generations.jsonl   `index` in the split, `texts`; a batch at a time
    {task}-generations.json    what they were made with
    …                          the task's own files, see `tasks.Task`

The same command goes on where one was stopped. A sample depends on the seed,
its example's index and its own number, not on the batch it is in.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import time
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import command_line, errors, formats
from prompt_tuning.data import tasks, token_ids
from prompt_tuning.decoding import stops
from prompt_tuning.train import application, settings, sharding
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib


def generate(
    *,
    model,
    dataset_cfg: settings.DatasetConfig,
    restore_checkpoint_cfg: settings.RestoreCheckpointConfig,
    output_dir: str,
    trainable: Sequence[str] = (),
    prompt_file: str | None = None,
    adapter: str | None = None,
    run_dir: str | None = None,
    num_examples: int | None = None,
    random_seed: int = 0,
    mesh: Callable[[], jax.sharding.Mesh] = sharding.make_mesh,
) -> list[str]:
  """Decodes the examples of one split of a task or mixture.

  Args:
    model: see `models.language_model.LanguageModel`; its `decode_fn` says how
      to search or sample.
    dataset_cfg: what to run on; the length of "targets" bounds the texts.
    restore_checkpoint_cfg: the base weights.
    output_dir: where results go.
    trainable: see `eval.evaluate`.
    prompt_file: see `eval.evaluate`.
    adapter: see `application.start`.
    run_dir: see `application.start`.
    num_examples: as many, spread evenly over the split; None for all.
    random_seed: for sampling and initialisation.
    mesh: makes the device mesh.

  Returns:
    The files that were written.

  Raises:
    UserError: on any bad setting or file, and if the folder has the texts of
      other settings.
  """
  if num_examples is not None:
    settings.check_positive("NUM_EXAMPLES", num_examples)
  applied = application.start(
      model=model, dataset=dataset_cfg, restore=restore_checkpoint_cfg,
      output_dir=output_dir, output_setting="GENERATE_OUTPUT_DIR",
      trainable=trainable, prompt_file=prompt_file, adapter=adapter,
      run_dir=run_dir, random_seed=random_seed, mesh=mesh)
  written = []
  for task, _ in applied.members:
    written += of_task(applied, task, num_examples, random_seed)
  return written


def of_task(
    applied: application.Application, task: tasks.Task,
    num_examples: int | None, random_seed: int,
) -> list[str]:
  """`generate` for one task."""
  examples = applied.examples(task)
  chosen = token_ids.spread(len(examples), num_examples)
  # Of one length side by side: a batch is padded to its longest.
  order = chosen[np.argsort(
      examples.lengths("inputs")[chosen], kind="stable")]
  records = Records(
      os.path.join(applied.output_dir, f"{task.name}-generations"), {
          "examples": examples.fingerprint, "num_examples": num_examples,
          "model": weights_fingerprint(applied.weights),
          "decoding": decoding_facts(applied.model.decode_fn),
          "length": applied.dataset.task_feature_lengths["targets"],
          "stops": list(task.stops), "random_seed": random_seed})
  done = set(records.texts)
  if missing := [index for index in order.tolist() if index not in done]:
    print(f"{task.name}: {len(missing):,} of {len(order):,} examples to go")
    _run(applied, task, examples, order, records, random_seed)
  found = chosen.tolist()
  return records.files + _write_files(
      applied.output_dir, task, [examples.original(i) for i in found],
      [records.texts[i] for i in found])


def _run(applied, task, examples, order, records, random_seed):
  """Decodes the batches that are not all there."""
  model = with_stops(applied.model, task.stops)
  decode = jax.jit(
      step_lib.make_decodes_step(model),
      compiler_options=step_lib.compiler_options())
  key = jax.random.PRNGKey(random_seed)
  keys_of = jax.jit(jax.vmap(lambda index: jax.random.fold_in(key, index)))
  size, start = applied.dataset.batch_size, time.time()
  batches = applied.runner.batches(examples.select(order), applied.dataset)
  for number, (batch, real) in enumerate(batches):
    indices = order[number * size:][:real]
    if all(index in records.texts for index in indices.tolist()):
      continue
    tokens = np.asarray(decode(
        applied.weights.trainable, applied.weights.frozen, batch,
        keys_of(np.pad(indices, (0, size - real), mode="edge"))))
    records.add({
        int(index): [
            stops.cut(model.output_vocabulary.decode(row.tolist()), task.stops)
            for row in rows]
        for index, rows in zip(indices, tokens)})
    print(f"{task.name}: {number * size + real:,} of {len(order):,} in "
          f"{time.time() - start:.0f} s", flush=True)


def with_stops(model, texts: Sequence[str]):
  """The model whose decoding ends at stop strings, if it can.

  Beam search goes on to the end-of-sequence; its texts are cut all the same.
  """
  taken = inspect.signature(model.decode_fn).parameters
  if not texts or "stop_table" not in taken:
    return model
  table = stops.stop_table(texts, stops.token_texts(model.output_vocabulary))
  return dataclasses.replace(model, decode_fn=functools.partial(
      model.decode_fn, stop_table=table))


def decoding_facts(decode_fn: Callable[..., Any]) -> dict[str, Any]:
  """The name and settings of a search, as JSON has them."""
  if isinstance(decode_fn, functools.partial):
    facts = {k: repr(v) for k, v in decode_fn.keywords.items()}
    return decoding_facts(decode_fn.func) | facts
  try:
    bound = gin.get_bindings(decode_fn)
  except ValueError:  # nothing of it is in gin
    bound = {}
  return {"name": decode_fn.__name__} | {
      name: getattr(value, "__name__", value) for name, value in bound.items()}


def weights_fingerprint(weights) -> str:
  """sha256 of the trained arrays and of the base's name."""
  digest = hashlib.sha256(weights.base_fingerprint.encode())
  for path, array in sorted(state_lib.flatten(weights.trainable).items()):
    digest.update(path.encode())
    digest.update(np.asarray(array).tobytes())
  return digest.hexdigest()


class Records:
  """Texts by example, on disk as soon as a batch of them is there.

  Attributes:
    texts: of each index.
    files: the two on disk.
  """

  def __init__(self, stem: str, facts: Mapping[str, Any]):
    """Reads what an interrupted run left, or begins.

    Args:
      stem: the files' name without `.jsonl` and `.json`.
      facts: what decides the texts.

    Raises:
      UserError: the files are of other facts, or cannot be written.
    """
    self._path = f"{stem}.jsonl"
    self.files = [self._path, f"{stem}.json"]
    self.texts: dict[int, list[str]] = {}
    facts = json.loads(json.dumps(facts))
    if os.path.exists(self.files[1]):
      with open(self.files[1], encoding="utf-8") as file:
        other = [name for name, value in json.load(file).items()
                 if facts.get(name) != value]
      if other:
        raise errors.UserError(
            f"{self._path} has texts that were made with another "
            f"{' and '.join(other)}: give another GENERATE_OUTPUT_DIR, or "
            f"delete {self.files[1]} and it")
      self._read()
    elif jax.process_index() == 0:
      formats.write_whole(self._path, b"")
      formats.write_whole(
          self.files[1], (json.dumps(facts, indent=2) + "\n").encode())

  def _read(self):
    """All whole lines; what is behind them was cut off while written."""
    end = 0
    with open(self._path, "rb") as file:
      for line in file:
        if not line.endswith(b"\n"):
          break
        row = json.loads(line)
        self.texts[row["index"]] = row["texts"]
        end += len(line)
    if end < os.path.getsize(self._path) and jax.process_index() == 0:
      os.truncate(self._path, end)

  def add(self, texts: Mapping[int, list[str]]) -> None:
    """Keeps texts, and returns when they are on disk."""
    new = {i: one for i, one in texts.items() if i not in self.texts}
    self.texts |= new
    if jax.process_index() != 0:
      return
    try:
      with open(self._path, "ab") as file:
        file.write("".join(
            json.dumps({"index": i, "texts": one}, ensure_ascii=False) + "\n"
            for i, one in new.items()).encode())
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise errors.UserError(
          f"cannot write {self._path}: {formats.why_not_written(error)}"
      ) from error


def _write_files(folder, task, examples, texts) -> list[str]:
  if task.prediction_files is None or jax.process_index() != 0:
    return []
  written = []
  for name, content in task.prediction_files(examples, texts).items():
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    formats.write_whole(path, content.encode())
    written.append(path)
  print("\n".join(os.path.relpath(path) for path in written))
  return written


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning.scripts import generate as importable

  command_line.main(importable.generate)
