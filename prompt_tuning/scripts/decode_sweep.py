"""Trainings times ways to decode in one command: which texts are best?

    python -m prompt_tuning.scripts.decode_sweep \\
        --gin_file=prompt_tuning/configs/runs/table_to_text_sweep.gin \\
        --gin.INITIAL_CHECKPOINT_PATH="'distilgpt2'" …

Every combination of the settings of training is trained once, and what it
left decodes with every combination of the others. In SWEEP_OUTPUT_DIR:

    sweep.md .json .png           a row for each combination, and a picture
    PREFIX_LENGTH=5/trained/      MODEL_DIR of `train`
    PREFIX_LENGTH=5/NUM_BEAMS=5_TEMPERATURE=0.2/
                                  the output folder of `scripts.generate`, and
                                  result.json, the scores
    cache/  compiled/             tokenised examples; compiled programs

The same command goes on where it was stopped; what is finished is read.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import itertools
import os
from typing import Any

import gin
import jax

from prompt_tuning import command_line, errors, formats
from prompt_tuning.checkpoints import runs
from prompt_tuning.compare import entries, results, tables
from prompt_tuning.metrics import sentence_bleu
from prompt_tuning.scripts import generate, score_text
from prompt_tuning.train import comparison, exporting, loop, members, setup

_METRIC = "sentence_bleu"

Settings = Mapping[str, Any]


def sweep(
    *,
    training: entries.Entries,
    decoding: entries.Entries,
    trained: Mapping[str, Sequence[Any]],
    decoded: Mapping[str, Sequence[Any]],
    references: Mapping[str, str],
    checkpoint: str,
    output_dir: str,
) -> str:
  """Trains, decodes and scores all combinations.

  Args:
    training: gin files and bindings of `train`, whose method PEFT knows.
    decoding: those of `scripts.generate`, of a task that writes files with
      lines `number||text`.
    trained: values of macros of training by name.
    decoded: values of macros of decoding by name.
    references: by the name of a file of texts without its `.out`, a file with
      lines `number||table||reference`.
    checkpoint: the base weights, INITIAL_CHECKPOINT_PATH.
    output_dir: where results go.

  Returns:
    The table.

  Raises:
    UserError: on any bad setting or file, with the combination that it is
      about.
  """
  _check(trained, decoded, references)
  output_dir = setup.make_folder(output_dir, "SWEEP_OUTPUT_DIR")
  results.keep_compiled(output_dir)
  cache = os.path.join(output_dir, "cache")
  base = {"INITIAL_CHECKPOINT_PATH": os.path.abspath(checkpoint)}
  # All gin files are read, so that a slip shows before hours have gone by.
  _configure(training, cache, base | next(combinations(trained)) | {
      "MODEL_DIR": output_dir})
  _configure(decoding, cache, base | next(combinations(decoded)) | {
      "ADAPTER": None, "GENERATE_OUTPUT_DIR": output_dir})
  records = []
  for of_training in combinations(trained):
    folder = os.path.join(output_dir, members.folder_name(of_training))
    with _named(of_training):
      count = _train(training, cache, base | of_training, os.path.join(
          folder, "trained"))["trained parameters"]
    for of_decoding in combinations(decoded):
      both = of_training | of_decoding
      with _named(both):
        result = _decode(
            decoding, cache, base | of_decoding, references,
            os.path.join(folder, "trained", exporting.ADAPTER_FOLDER),
            os.path.join(folder, members.folder_name(of_decoding)))
      records.append(both | {"trained parameters": count} | result["scores"])
      print(f"{_text(both)}: " + ", ".join(
          f"{name} {value:.4f}" for name, value in result["scores"].items()),
            flush=True)
      table = write(output_dir, records, list(references))
    jax.clear_caches()  # programs of a training are of no use to the next one
  print(f"\n{table}\n" + "\n".join(
      f"best on {name}: {records[best]}" for name, best in (
          (name, max(range(len(records)), key=lambda i: records[i][name]))
          for name in references)))
  return table


def combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict]:
  """Every choice of one value for each name, the last name's fastest."""
  for chosen in itertools.product(*values.values()):
    yield dict(zip(values, chosen))


def _check(trained, decoded, references):
  for macro, found in (("TRAINED", trained), ("DECODED", decoded)):
    for name, values in found.items():
      if isinstance(values, str) or not isinstance(values, Sequence) or (
          not values or len(set(map(repr, values))) < len(values)):
        raise errors.UserError(
            f"{macro}[{name!r}] is {values!r}: give a list of different "
            "values, as in [5, 10, 20].")
  if twice := sorted(trained.keys() & decoded.keys()):
    raise errors.UserError(
        f"{twice[0]} is in TRAINED and in DECODED: leave it in one of them.")
  if not references:
    raise errors.UserError(
        "REFERENCES is empty, so that nothing is judged: give it as "
        "{'dev': 'reference/dev.out'}.")
  for name, path in references.items():
    if not os.path.isfile(path):
      raise errors.UserError(
          f"REFERENCES[{name!r}] is {path!r}, which is no file: give one with "
          "lines `number||table||reference`.")


def _configure(files: entries.Entries, cache: str, macros: Settings):
  gin.clear_config()
  command_line.configure([
      *entries.flags(files),
      *(f"--gin.{name}={value!r}" for name, value in macros.items()),
      entries.CACHE.format(cache)])


def _train(files, cache: str, macros: Settings, folder: str) -> dict[str, Any]:
  """Trains, and goes on where an earlier run stopped."""

  def make():
    _configure(files, cache, macros | {"MODEL_DIR": folder})
    command_line.call(loop.train)
    if not os.path.isdir(os.path.join(folder, exporting.ADAPTER_FOLDER)):
      raise errors.UserError(
          "what was trained left no adapter/, of which texts are made: take a "
          "method that PEFT has, too.")
    arrays, _ = runs.trained(folder)
    return {"trained parameters": sum(
        array.size for array in arrays.values())}

  return results.kept(folder, [files, macros], "SWEEP_OUTPUT_DIR", make)


def _decode(
    files, cache: str, macros: Settings, references, adapter: str, folder: str
) -> dict[str, Any]:
  """Decodes and scores, and goes on where an earlier run stopped."""

  def make():
    _configure(files, cache, macros | {
        "ADAPTER": adapter, "GENERATE_OUTPUT_DIR": folder})
    command_line.call(generate.generate)
    return {"scores": {
        name: _score(os.path.join(folder, f"{name}.out"), path)
        for name, path in references.items()}}

  return results.kept(
      folder, [files, macros, references], "SWEEP_OUTPUT_DIR", make)


def _score(outputs: str, references: str) -> float:
  report = score_text.score(
      outputs, [references], {_METRIC: sentence_bleu.sentence_bleu}, "ids")
  return report["splits"]["all"]["scores"][_METRIC]


@contextlib.contextmanager
def _named(settings: Settings):
  """Says of what combination an error is."""
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f"{_text(settings)}: {error}") from error


def _text(settings: Settings) -> str:
  return " ".join(f"{name}={value}" for name, value in settings.items())


def write(
    folder: str, records: Sequence[Settings], references: Sequence[str]
) -> str:
  """Writes `sweep.md`, `.json` and `.png`; gives the table.

  Args:
    folder: where to.
    records: of each combination so far, its settings and its scores.
    references: the names of the scores.
  """
  settings = [name for name in records[0]
              if name not in references and name != "trained parameters"]
  found = {
      (", ".join(str(one[name]) for name in settings), task):
          {"value": one[task], "metric": _METRIC}
      for one in records for task in references}
  picture = io.BytesIO()
  tables.figure(found, ", ".join(settings)).savefig(picture, format="png")
  formats.write_whole(
      os.path.join(folder, comparison.PICTURE), picture.getvalue())
  return comparison.write(folder, records)


if __name__ == "__main__":
  # Run as a module this file is `__main__`; gin knows the importable one.
  from prompt_tuning.scripts import decode_sweep as importable

  command_line.main(importable.sweep)
