"""English technical text on every machine: docstrings of installed packages.

The embedded default is pretrained on the documentation strings of the Python
packages that the install itself brings, and its two tasks are made of them.
Sources are read and parsed, never imported or run, and nothing of them is
kept in the project. A module (a source file) is wholly in one split, chosen
by a hash of its name, so tasks never see a module that pretraining saw.
"""

import ast
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import pathlib
import re
import sysconfig

from prompt_tuning.data import tasks
from prompt_tuning.metrics import accuracy, token_f1

# What `pip install` of this package brings, with the standard library as
# "python". A package that is absent is passed over.
PACKAGES = (
    "python", "absl", "etils", "flax", "grain", "h5py", "jax", "keras",
    "matplotlib", "numpy", "optax", "orbax", "PIL", "rich", "scipy", "seqio",
    "setuptools", "tensorflow", "tensorflow_datasets",
)

# The classes of `docstring_package`.
PACKAGE_LABELS = ("python", "scipy", "tensorflow", "matplotlib")

# Percent of modules in each split.
_SPLITS = (("pretrain", 75), ("train", 15), ("validation", 10))

_SKIPPED_FOLDERS = frozenset({
    "site-packages", "test", "tests", "testing", "idlelib", "lib2to3",
    "__pycache__", "_vendor", "node_modules", "v1",
})
_SKIPPED_FILES = re.compile(r"(_test|_tests|_pb2|_pb2_grpc|test_.*)\.py$")


@dataclasses.dataclass(frozen=True)
class Entry:
  """One documented module, class or function.

  Attributes:
    package: the top-level package, "python" for the standard library.
    module: the dotted module name.
    name: the dotted name inside the module; empty for the module itself.
    signature: as in the source, `name(arguments)`; empty for a module.
    text: the docstring, indentation cleaned.
  """

  package: str
  module: str
  name: str
  signature: str
  text: str


def split_of(module: str) -> str:
  """The split a module belongs to, the same on every machine."""
  percent = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
  for split, share in _SPLITS:
    if percent < share:
      return split
    percent -= share
  raise AssertionError("the shares add up to 100")


def entries(package: str, split: str) -> Iterator[Entry]:
  """The documented names of a package's modules in one split, in order."""
  for module, path in _modules(package):
    if split_of(module) == split:
      yield from _read_module(package, module, path)


def _modules(package: str) -> list[tuple[str, pathlib.Path]]:
  root = _package_root(package)
  if root is None:
    return []
  found = []
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
    for file in sorted(files):
      if file.endswith(".py") and not _SKIPPED_FILES.search(file):
        path = pathlib.Path(folder, file)
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
          parts = parts[:-1]
        prefix = () if package == "python" else (package,)
        found.append((".".join(prefix + parts), path))
  return found


def _package_root(package: str) -> pathlib.Path | None:
  if package == "python":
    return pathlib.Path(sysconfig.get_paths()["stdlib"])
  spec = importlib.util.find_spec(package)  # does not import the package
  if spec is None or not spec.submodule_search_locations:
    return None
  return pathlib.Path(list(spec.submodule_search_locations)[0])


def _read_module(
    package: str, module: str, path: pathlib.Path
) -> Iterator[Entry]:
  try:
    tree = ast.parse(path.read_text(encoding="utf-8"))
  except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
    return  # templates and data files that only look like modules
  text = _docstring(tree)
  if text:
    yield Entry(package, module, "", "", text)
  yield from _read_body(package, module, "", tree.body)


def _read_body(package, module, prefix, body) -> Iterator[Entry]:
  for node in body:
    if isinstance(node, ast.ClassDef):
      arguments = ", ".join(ast.unparse(base) for base in node.bases)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      arguments = _arguments(node.args)
    else:
      continue
    text = _docstring(node)
    if text:
      name = prefix + node.name
      yield Entry(package, module, name, f"{node.name}({arguments})", text)
    if isinstance(node, ast.ClassDef):
      yield from _read_body(
          package, module, f"{prefix}{node.name}.", node.body)


def _arguments(arguments: ast.arguments) -> str:
  """Names and defaults without annotations, which can be pages long."""
  for argument in ast.walk(arguments):
    if isinstance(argument, ast.arg):
      argument.annotation = None
  return ast.unparse(arguments)


def _docstring(node) -> str:
  first = node.body[0] if node.body else None
  if not (isinstance(first, ast.Expr) and isinstance(
      first.value, ast.Constant) and isinstance(first.value.value, str)):
    return ""
  return inspect.cleandoc(first.value.value).strip()


def heading(entry: Entry) -> str:
  """The qualified name: `scipy.linalg.cholesky`."""
  return f"{entry.module}.{entry.name}" if entry.name else entry.module


def page(entry: Entry) -> str:
  """An entry as reference manuals print it: name, signature, text."""
  return "\n".join(
      part for part in (heading(entry), entry.signature, entry.text) if part)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")


def sentences(text: str) -> list[str]:
  """Prose sentences of 8 to 40 words in a docstring, on one line each.

  Only the first paragraph and other flush-left paragraphs count: indented
  blocks are argument lists, examples and tables.
  """
  found = []
  for paragraph in re.split(r"\n\s*\n", text):
    lines = paragraph.split("\n")
    if any(re.match(r"\s|[-=~^>.*:+|]|\w+:$", line) for line in lines):
      continue
    for sentence in _SENTENCE_END.split(" ".join(lines)):
      words = sentence.split()
      if 8 <= len(words) <= 40 and sentence[-1] in ".!?":
        found.append(" ".join(words))
  return found


def summary(text: str) -> str:
  """The first paragraph's first sentence: a docstring's one-line summary."""
  first = " ".join(re.split(r"\n\s*\n", text)[0].split())
  return _SENTENCE_END.split(first)[0]


def _by_hash(items: Sequence[str]) -> list[str]:
  """An order that depends on the texts alone, the same on every machine."""
  return sorted(
      items, key=lambda text: hashlib.sha256(text.encode()).digest())


def package_examples(split: str, per_label: int) -> Iterator[dict[str, str]]:
  """`docstring_package`: which package does a sentence come from?

  Args:
    split: "train" or "validation".
    per_label: at most this many sentences a package; all packages give as
      many as the one with the fewest, so that the majority class is 1 in 4.

  Yields:
    {"inputs": sentence, "targets": package}.
  """
  found = {}
  seen = set()
  for package in PACKAGE_LABELS:
    mine = {s for e in entries(package, split) for s in sentences(e.text)}
    found[package] = _by_hash(mine - seen)
    seen |= mine
  count = min(per_label, *(len(mine) for mine in found.values()))
  for rank in range(count):
    for package in PACKAGE_LABELS:
      yield {"inputs": found[package][rank], "targets": package}


def summary_examples(split: str, limit: int) -> Iterator[dict[str, str]]:
  """`docstring_summary`: a function's one-line summary from its signature.

  Args:
    split: "train" or "validation".
    limit: at most this many examples.

  Yields:
    {"inputs": "module.name(arguments)", "targets": summary}.
  """
  found = {}
  for package in PACKAGE_LABELS:
    for entry in entries(package, split):
      line = summary(entry.text)
      if entry.signature and 3 <= len(line.split()) <= 24:
        found.setdefault(line, f"{entry.module}.{entry.signature}")
  for line in _by_hash(list(found))[:limit]:
    yield {"inputs": found[line], "targets": line}


def docstring_package(per_label: int = 10_000) -> tasks.Task:
  """The task `docstring_package`; see `package_examples`."""
  return _task(
      "docstring_package", ("train", "validation"), (accuracy.accuracy,),
      functools.partial(package_examples, per_label=per_label))


def docstring_summary(limit: int = 4_000) -> tasks.Task:
  """The task `docstring_summary`; see `summary_examples`."""
  return _task(
      "docstring_summary", ("train", "validation"), (token_f1.token_f1,),
      functools.partial(summary_examples, limit=limit))


def _task(name, splits, metric_fns, examples) -> tasks.Task:
  return tasks.Task(
      name=name, examples=examples, splits=splits, metric_fns=metric_fns,
      fingerprint=fingerprint(name, PACKAGE_LABELS, str(examples.keywords)))


def fingerprint(name: str, packages: Sequence[str], settings: str) -> str:
  """Changes when the sources that a task is read from change (by size)."""
  sizes = [
      [package, module, path.stat().st_size]
      for package in packages for module, path in _modules(package)]
  content = json.dumps([name, settings, sizes])
  return hashlib.sha256(content.encode()).hexdigest()
