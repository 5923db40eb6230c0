"""Writes tests/expectations/text_metrics.json with the original scorers.

    python tests/make_text_metric_expectations.py \\
        E2E_METRICS MULTI_BLEU PYCOCOEVALCAP

E2E_METRICS is a checkout of github.com/tuetschek/e2e-metrics, whose Python
parts are run, MULTI_BLEU is Moses' `scripts/generic/multi-bleu.perl`, and
PYCOCOEVALCAP is the folder of the package pycocoevalcap 1.2, which has the Java
programs that the first one calls: CoreNLP's PTBTokenizer and METEOR 1.5. Needs
Java, Perl and `pip install future numpy unidecode`.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

# Outputs and references, as tables and triples give rise to them.
EXAMPLES = [
    ("The Copper Kettle is a cheap pub by the river , near The Mill .",
     ["The Copper Kettle is a low-priced pub near The Mill, by the river.",
      "Near The Mill there's a cheap riverside pub called The Copper Kettle.",
      "The Copper Kettle, by the river and near The Mill, is a cheap pub."]),
    ("Anna's serves Italian food for £20-25.",
     ["Anna's serves Italian food; it costs £20-25 and isn't for families."]),
    ("It is family - friendly and rated 5 out of 5 .",
     ["It's family-friendly, and its customers rate it 5 out of 5.",
      "This family friendly place has a rating of 5 out of 5!"]),
    ("Blue Door is a coffee shop (not family-friendly) in the city centre.",
     ["Blue Door, a coffee shop in the city centre, isn't family-friendly.",
      "A coffee shop in the centre: Blue Door. It is not family-friendly."]),
    ("Jörg Müller was born in Århus , and plays for A.C. Nordby F.C.",
     ["Jörg Müller, who plays for A.C. Nordby, was born in Århus.",
      "Born in Århus – Denmark – Jörg Müller's club is A.C. Nordby F.C."]),
    ("The tower's 1,250.5 metres were built in 1960 \"by hand\".",
     ["The tower is 1,250.5 metres high; it was built \"by hand\" in 1960."]),
    ("the the the cheap cheap pub",
     ["The cheap pub.", "the cheap food of the pub", "The pub is cheap ."]),
]
PUNCTUATION = [
    "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!",
    ",", ":", "-", "--", "...", ";"]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("e2e_metrics")
  parser.add_argument("multi_bleu")
  parser.add_argument("pycocoevalcap", type=pathlib.Path)
  flags = parser.parse_args()
  sys.path.insert(0, flags.e2e_metrics)
  texts = [text for output, references in EXAMPLES
           for text in (output, *references)]
  penn = penn_words(
      texts, flags.pycocoevalcap / "tokenizer/stanford-corenlp-3.4.1.jar")
  webnlg = {text: webnlg_words(text) for text in texts}
  content = {
      "examples": EXAMPLES, "penn_words": penn, "webnlg_words": webnlg,
      **e2e_scores(
          EXAMPLES, penn, flags.pycocoevalcap / "meteor/meteor-1.5.jar"),
      "multi_bleu": multi_bleu(EXAMPLES, webnlg, flags.multi_bleu)}
  target = pathlib.Path(__file__).parent / "expectations/text_metrics.json"
  target.write_text(
      json.dumps(content, indent=1, ensure_ascii=False) + "\n",
      encoding="utf-8")
  print({key: value for key, value in content.items()
         if isinstance(value, float)})


def e2e_scores(examples, penn, meteor_jar):
  """The E2E scorer's figures, which it prints, at full precision.

  Args:
    examples: outputs with references.
    penn: a text's words with spaces between.
    meteor_jar: METEOR 1.5.
  """
  from metrics import pymteval
  from pycocoevalcap.cider import cider
  from pycocoevalcap.meteor import meteor
  from pycocoevalcap.rouge import rouge

  bleu, nist = pymteval.BLEUScore(), pymteval.NISTScore()
  for output, references in examples:
    bleu.append(output, references)
    nist.append(output, references)
  outputs = {i: [penn[output]] for i, (output, _) in enumerate(examples)}
  references = {i: [penn[text] for text in texts]
                for i, (_, texts) in enumerate(examples)}
  meteor.METEOR_JAR = str(meteor_jar.resolve())
  return {
      "bleu": bleu.score(), "nist": nist.score(),
      "rouge_l": float(rouge.Rouge().compute_score(references, outputs)[0]),
      "cider": float(cider.Cider().compute_score(references, outputs)[0]),
      "meteor": meteor.Meteor().compute_score(references, outputs)[0]}


def penn_words(texts, jar):
  """The words that pycocoevalcap's tokenizer takes from CoreNLP."""
  with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
    file.write("".join(f"{text}\n" for text in texts))
    file.flush()
    lines = subprocess.run(
        ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer",
         "-preserveLines", "-lowerCase", file.name],
        stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
  return {
      text: " ".join(
          word for word in line.rstrip().split(" ") if word not in PUNCTUATION)
      for text, line in zip(texts, lines.splitlines(), strict=True)}


def webnlg_words(text):
  """What WebNLG's evaluation scripts make of a text."""
  import unidecode

  spaced = " ".join(re.split(r"(\W)", unidecode.unidecode(text.lower())))
  return " ".join(spaced.split()).lower()


def multi_bleu(examples, words, program):
  """What multi-bleu.perl -lc prints; fewer references are repeated."""
  with tempfile.TemporaryDirectory() as folder:
    for i in range(3):
      pathlib.Path(folder, f"reference{i}").write_text("".join(
          words[(references * 3)[i]] + "\n" for _, references in examples),
                                                         encoding="utf-8")
    printed = subprocess.run(
        ["perl", program, "-lc", f"{folder}/reference"], check=True,
        input="".join(words[output] + "\n" for output, _ in examples),
        stdout=subprocess.PIPE, encoding="utf-8").stdout
  return float(re.match(r"BLEU = ([\d.]+),", printed).group(1))


if __name__ == "__main__":
  main()
