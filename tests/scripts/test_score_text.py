"""The command on files in each layout, and what it says of bad ones.

Oracles: the figures of the metrics' own tests, and real references against
themselves and against sacrebleu.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest
import sacrebleu

from prompt_tuning.scripts import score_text

E2E = "--metrics=bleu_mteval13a,nist,rouge_l,cider"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def scored(expectations):
  return json.loads(
      (expectations / "text_metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
  """Writes files, runs the command; gives its lines and the JSON."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments, **texts):
    for name, text in texts.items():
      (tmp_path / name).write_text(text, encoding="utf-8")
    score_text.main(["--outputs", "out", *map(str, arguments)])
    path = tmp_path / "out.scores.json"
    return capsys.readouterr().out.splitlines(), json.loads(path.read_text())

  return run


def test_the_e2e_scorers_figures(run, scored):
  examples = scored["examples"]
  lines, report = run(
      "--references", "ref", E2E,
      out="".join(f"{output}\n" for output, _ in examples),
      ref="\n\n".join("\n".join(texts) for _, texts in examples))
  assert report["splits"] == {"all": {
      "outputs": 7, "empty_outputs": 0, "references": 14, "scores": {
          "bleu_mteval13a": pytest.approx(100 * scored["bleu"]),
          "nist": pytest.approx(scored["nist"]),
          "rouge_l": pytest.approx(100 * scored["rouge_l"]),
          "cider": pytest.approx(scored["cider"])}}}
  assert f"bleu_mteval13a {100 * scored['bleu']:>11.4f}" in lines
  assert lines[-1] == "scores: out.scores.json"
  assert "E2E scorer's" in report["metrics"]["cider"]
  assert report["versions"]["sacrebleu"] == sacrebleu.__version__


def test_splits_and_empty_outputs(run):
  lines, report = run(
      "--references", "ref0", "ref1", "--categories", "kinds",
      "--metrics", "multi_bleu, ter",
      out="a b c d e\n\na b c d x\n", ref0="a b c d e\nx\na b c d e\n",
      ref1="\ny\n\n", kinds="Food\nArtist\nFood\n")
  parts = report["splits"]
  assert [part["outputs"] for part in parts.values()] == [3, 2, 1]
  assert parts["seen"]["scores"] == {
      "multi_bleu": pytest.approx(
          100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25),
      "ter": pytest.approx(10)}
  assert parts["unseen"]["scores"] == {
      "multi_bleu": 0.0, "ter": pytest.approx(100)}
  assert lines[0].split() == ["all", "seen", "unseen"]
  assert "1 of the outputs are empty; they are scored as such" in lines


def test_first_references(run):
  texts = {"out": "a b c d e\n", "ref": "\n".join(["x"] * 3 + ["a b c d e"])
           + "\n\n"}
  files = {f"ref{i}": line + "\n" for i, line in enumerate(
      texts["ref"].split("\n")[:4])}
  scores = [
      run("--references", *files, "--metrics=multi_bleu,bleu", *more,
          out=texts["out"], **files)[1]["splits"]["all"]["scores"]
      for more in ((), ("--first_references", 4), ("--first_references", 2))]
  assert [(round(one["multi_bleu"]), round(one["bleu"])) for one in scores] == [
      (0, 100), (100, 100), (0, 0)]


def test_synonyms_are_named(run, tmp_path):
  arguments = ["--references", "ref", "--metrics=meteor"]
  texts = {"out": "a pub\n", "ref": "a pub\n"}
  with pytest.raises(SystemExit) as leaving:
    run(*arguments, "--wordnet", "nowhere", **texts)
  assert leaving.value.code == 2
  (name,) = run(*arguments, **texts)[1]["splits"]["all"]["scores"]
  assert name in ("meteor_exact_stem", "meteor_wordnet")


def test_the_assignments_files(run, shared_data):
  """Outputs equal to a reference of theirs are worth 100."""
  path = shared_data / "e2e/table_to_text_reference/dev.out"
  first = {}
  for line in path.read_text().splitlines():
    name, _, text = line.split("||")
    first.setdefault(name, text)
  _, report = run(
      "--references", path, "--layout=ids", "--metrics=sentence_bleu",
      out="".join(f"{name}||{text}\n" for name, text in first.items()))
  assert report["splits"]["all"] == {
      "outputs": 547, "empty_outputs": 0, "references": 4672,
      "scores": {"sentence_bleu": pytest.approx(100)}}


def test_real_rows(run, shared_data):
  """E2E's last reference of each table against the others.

  `measure_scores.py -p -t -H` prints 0.5955 8.7901 0.4489 0.6316 2.0387 of the
  same files; the groups with one reference keep it.
  """
  groups = {}
  for line in gzip.decompress(
      (shared_data / "e2e/test.txt.gz").read_bytes()).decode().splitlines():
    table, text = line.split("||")
    groups.setdefault(table, []).append(text.strip())
  _, report = run(
      "--references", "ref", E2E,
      out="".join(f"{texts[-1]}\n" for texts in groups.values()),
      ref="\n\n".join("\n".join(texts[:-1] or texts)
                      for texts in groups.values()))
  assert report["splits"]["all"]["scores"] == {
      "bleu_mteval13a": pytest.approx(59.55, abs=0.005),
      "nist": pytest.approx(8.7901, abs=0.00005),
      "rouge_l": pytest.approx(63.16, abs=0.005),
      "cider": pytest.approx(2.0387, abs=0.00005)}


@pytest.mark.parametrize("arguments, sentence", [
    (["--references", "ref", "--metrics=blue"],
     "there is no metric 'blue': did you mean bleu"),
    (["--references", "ref", "--metrics=xyzzy"],
     "there is no metric 'xyzzy': known are bleu, "),
    (["--metrics=nist,cider"],
     "nist, cider compare outputs with references: name their files"),
    (["--references", "nowhere"], "cannot read nowhere"),
    (["--references", "ref", "--categories", "kinds"],
     "kinds has 3 categories for 2 outputs"),
    (["--references", "ref", "--wordnet", "here"],
     "--wordnet is for the metric meteor, which --metrics does not name"),
    (["--references", "ref", "--metrics=meteor_jar", "--meteor_jar", "no.jar"],
     "METEOR 1.5"),
    (["--references", "ref", "--first_references", "0"], "leaves none"),
    (["--references", "ref", "--layout", "ids"], "out line 1 has no '||'"),
    (["--references", "ref", "--json", "no/where.json"], "no/where.json"),
    (["--references", "three"], "out has 2 outputs and three references for 3"),
    (["--references", "ref", "three"],
     "out has 2 outputs and three references for 3"),
    (["--references", "blank", "blank"], "entry 2 has no reference"),
    (["--references", "ref", "--outputs", "nothing"], "nothing is empty"),
])
def test_mistakes_are_one_sentence(run, capsys, tmp_path, arguments, sentence):
  with pytest.raises(SystemExit) as leaving:
    run(*arguments, out="a\nb\n", ref="c\nd\n", kinds="Food\nFood\nFood\n",
        three="c\nd\ne\n", blank="c\n\n", nothing="")
  assert leaving.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and sentence in line
  assert not list(tmp_path.glob("*.json"))


def test_the_command_needs_no_jax(tmp_path):
  (tmp_path / "out").write_text("a b c d\n")
  code = ("import sys; from prompt_tuning.scripts import score_text\n"
          "score_text.main(['--outputs', 'out', '--references', 'out'])\n"
          "assert not {'jax', 'tensorflow', 'nltk'} & set(sys.modules)")
  done = subprocess.run(
      [sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
      text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr
  assert "bleu             100.0000" in done.stdout
