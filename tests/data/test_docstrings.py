"""The docstring corpus, on packages written here and on the installed ones."""

import itertools
import textwrap

import pytest

from prompt_tuning.data import docstrings


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package `sample` with one module, found where docstrings looks."""
  folder = tmp_path / "sample"
  (folder / "tests").mkdir(parents=True)
  (folder / "__init__.py").write_text('"""A sample."""\n')
  (folder / "broken.py").write_text("def (:\n")
  (folder / "tests" / "deep.py").write_text('"""Not to be read."""\n')
  (folder / "deep.py").write_text(textwrap.dedent('''
      """What the module is for."""
      raise RuntimeError("reading must not run this")

      class Thing(Base):
        """A thing."""

        async def grow(self, size: int = 3, *, fast: bool = False) -> None:
          """Makes it larger.

          Args:
            size: by how much.
          """

      def silent():
        pass
      '''))
  monkeypatch.setattr(
      docstrings, "_package_root", lambda name: folder)
  return folder


def _all(name):
  return [entry for split in ("pretrain", "train", "validation")
          for entry in docstrings.entries(name, split)]


def test_reads_names_signatures_and_texts_without_running_them(package):
  found = {(e.module, e.name): e for e in _all("sample")}
  assert set(found) == {
      ("sample", ""), ("sample.deep", ""), ("sample.deep", "Thing"),
      ("sample.deep", "Thing.grow")}
  grow = found["sample.deep", "Thing.grow"]
  assert grow.signature == "grow(self, size=3, *, fast=False)"
  assert grow.text == "Makes it larger.\n\nArgs:\n  size: by how much."
  assert docstrings.heading(grow) == "sample.deep.Thing.grow"
  assert docstrings.page(grow).split("\n")[:3] == [
      "sample.deep.Thing.grow", grow.signature, "Makes it larger."]


def test_standard_library_modules_have_no_package_name(package):
  assert {e.module for e in _all("python")} == {"", "deep"}


def test_a_module_is_in_one_split_and_splits_have_their_shares():
  names = [f"package.module_{i}" for i in range(5000)]
  shares = {
      split: sum(map(lambda n: docstrings.split_of(n) == split, names)) / 5000
      for split in ("pretrain", "train", "validation")}
  assert shares == pytest.approx(
      {"pretrain": 0.75, "train": 0.15, "validation": 0.10}, abs=0.02)
  # The assignment is a contract: the weights we ship never saw these.
  assert docstrings.split_of("scipy.linalg") == docstrings.split_of(
      "scipy.linalg")


def test_sentences_are_prose_of_a_sensible_length():
  text = textwrap.dedent("""\
      Short one. This sentence has exactly nine words in it, counted. And
      a second one that is long enough to be kept here too!

        indented text is code and not prose, so it does not count here.

      * a list item is not prose either, however long it may become.

      No end of sentence means that a line was a heading or a title""")
  assert docstrings.sentences(text) == [
      "This sentence has exactly nine words in it, counted.",
      "And a second one that is long enough to be kept here too!"]


def test_summary_is_the_first_sentence():
  assert docstrings.summary(
      "Return the value.\nMore of it. Then more.\n\nArgs:") == (
          "Return the value.")


def test_package_task_is_balanced_and_disjoint():
  examples = {
      split: list(docstrings.package_examples(split, per_label=40))
      for split in ("train", "validation")}
  for rows in examples.values():
    labels = [row["targets"] for row in rows]
    assert len(rows) == 40 * len(docstrings.PACKAGE_LABELS)
    assert all(labels.count(x) == 40 for x in docstrings.PACKAGE_LABELS)
    texts = [row["inputs"] for row in rows]
    assert len(set(texts)) == len(texts)


def test_examples_are_the_same_each_time():
  first, second = (
      list(itertools.islice(docstrings.summary_examples("validation", 50), 50))
      for _ in range(2))
  assert first == second
  assert all("(" in row["inputs"] and row["targets"] for row in first)
