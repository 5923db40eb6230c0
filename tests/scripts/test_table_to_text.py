"""The assignment from training to scores, with a tiny GPT-2.

Oracles: the checker's rule, written out over sacrebleu; what one command and
what several give; the numbers of parameters, counted.
"""

import functools
import json
import re

import numpy as np
import pytest
import sacrebleu

from prompt_tuning.scripts import decode_sweep, score_text

CONFIGS = "prompt_tuning/configs"
MODEL = "models/causal_lm_from_checkpoint"
WIDTH, LAYERS = 8, 1  # as `write_tiny_lm` has them

TABLES = [f"name : {name} | area : {area}" for name in ("Mill", "Vaults", "Sun",
          "Moon", "Star") for area in ("riverside", "city centre")]


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_tiny_lm):
  """A Hugging Face folder: DistilGPT-2 but for its sizes and weights."""
  return write_tiny_lm(
      tmp_path_factory.mktemp("distilgpt2"),
      ["Convert the following table into English text: ", *TABLES] * 3, 330,
      "<|endoftext|>", "gpt2", max_positions=160, positions="learned",
      norm="layer_norm", mlp_activations=("gelu",), qkv_bias=True,
      attention_out_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """train.txt, small.txt and its references small.out, two of each."""
  folder = tmp_path_factory.mktemp("tables")
  texts = [f"{table.split()[2]} lies at the {table.split(':')[2].strip()} ."
           for table in TABLES]
  (folder / "train.txt").write_text("".join(
      f"{table}||{text}\n" for table, text in zip(TABLES, texts)))
  (folder / "small.txt").write_text("".join(f"{one}\n" for one in TABLES))
  (folder / "more.txt").write_text(f"{TABLES[0]}\n")
  (folder / "small.out").write_text("".join(
      f"{i}||{table}||{one}\n" for i, (table, text) in enumerate(
          zip(TABLES, texts)) for one in (text, f"There is {text}")))
  return folder


@pytest.fixture(scope="module")
def flags(base):
  def make(*files, **macros):
    macros = {"INITIAL_CHECKPOINT_PATH": str(base), "BATCH_SIZE": 8} | macros
    return [*(f"--gin_file={CONFIGS}/{name}.gin" for name in files),
            *(f"--gin.{name}={value!r}" for name, value in macros.items())]

  return make


@pytest.fixture(scope="module")
def trained(command, flags, data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("trained")
  outcome = command("train", *flags(
      MODEL, "runs/table_to_text", TRAIN_EPOCHS=2, LEARNING_RATE=1e-2,
      TRAIN_FILE=str(data / "train.txt"), MODEL_DIR=str(folder)))
  assert outcome.status == 0, outcome.err
  return folder


@pytest.fixture(scope="module")
def generate(command, flags, data, trained):
  def run(folder, decoding="beam_sampling", **macros):
    return command("generate", *flags(
        MODEL, f"models/decoding/{decoding}", "runs/table_to_text_generate",
        **{"TABLE_FILES": [str(data / "small.txt"), str(data / "more.txt")],
           "ADAPTER": str(trained / "adapter"), "NEW_TOKENS": 12,
           "NUM_BEAMS": 2, "GENERATE_OUTPUT_DIR": str(folder)} | macros))

  return run


@pytest.fixture(scope="module")
def generated(generate, tmp_path_factory):
  folder = tmp_path_factory.mktemp("generated")
  outcome = generate(folder)
  assert outcome.status == 0, outcome.err
  return folder


def test_the_prefix_trains_and_is_saved_for_peft(trained):
  config = json.loads((trained / "adapter/adapter_config.json").read_text())
  assert config["peft_type"] == "PREFIX_TUNING"
  assert config["num_virtual_tokens"] == 5
  # The table that the projection makes, of all layers' keys and values.
  assert np.load(trained / "prompt.npy").shape == (5, LAYERS * 2 * WIDTH)


def test_texts_are_lines_with_numbers(generated):
  lines = (generated / "small.out").read_text().splitlines()
  assert [line.split("||")[0] for line in lines] == [
      str(i) for i in range(10)]
  assert len((generated / "more.out").read_text().splitlines()) == 1
  assert len({line.partition("||")[2] for line in lines}) > 3


@pytest.mark.slow
def test_the_model_as_it_is_has_other_texts(generated, generate, tmp_path):
  plain = generate(tmp_path, ADAPTER=None)
  assert plain.status == 0, plain.err
  assert (tmp_path / "small.out").read_text() != (
      generated / "small.out").read_text()


def test_what_was_killed_goes_on(generated, generate, tmp_path):
  whole = (generated / "small-generations.jsonl").read_bytes()
  kept = whole.splitlines(keepends=True)
  (tmp_path / "small-generations.jsonl").write_bytes(
      b"".join(kept[:8]) + kept[8][:9])  # torn while written
  (tmp_path / "small-generations.json").write_bytes(
      (generated / "small-generations.json").read_bytes())
  again = generate(tmp_path)
  assert again.status == 0 and "2 of 10 examples to go" in again.out
  for name in ("small-generations.jsonl", "small.out", "more.out"):
    assert (tmp_path / name).read_bytes() == (generated / name).read_bytes()
  other = generate(tmp_path, TEMPERATURE=0.5)
  assert other.status == 2 and "another decoding" in other.err


def checkers_score(outputs, references):
  """The assignment's: ids in any order, the mean over outputs."""
  texts = dict(line.split("||", 1) for line in outputs.splitlines())
  several = {}
  for line in references.splitlines():
    number, _, text = line.split("||")
    several.setdefault(number, []).append(text)
  score = sacrebleu.BLEU(effective_order=True).sentence_score
  return np.mean([
      score(texts[number], several[number]).score for number in texts])


def test_scores_are_the_checkers(data, tmp_path):
  outputs = tmp_path / "small.out"
  rows = [f"{i}||{'There is ' * (i % 3)}Mill lies at the riverside {'.' * i}\n"
          for i in (3, 1, 2, 0, 9, 8, 7, 6, 5, 4)]
  outputs.write_text("".join(rows))
  score_text.main([
      "--outputs", str(outputs), "--references", str(data / "small.out"),
      "--layout", "ids", "--metrics=sentence_bleu"])
  report = json.loads((tmp_path / "small.out.scores.json").read_text())
  expected = checkers_score(
      outputs.read_text(), (data / "small.out").read_text())
  assert 10 < expected < 90
  assert report["splits"]["all"]["scores"]["sentence_bleu"] == pytest.approx(
      expected, abs=1e-9)


@pytest.mark.parametrize("content, message", [
    ("0 a text\n", "line 1 has no '||'"), ("", "is empty"),
    ("0||a text\n", "1 outputs and .* references for 10")])
def test_bad_outputs_are_one_sentence(data, tmp_path, capsys, content, message):
  (tmp_path / "small.out").write_text(content)
  with pytest.raises(SystemExit) as leaving:
    score_text.main([
        "--outputs", str(tmp_path / "small.out"), "--references",
        str(data / "small.out"), "--layout", "ids",
        "--metrics=sentence_bleu"])
  assert leaving.value.code == 2
  [sentence] = capsys.readouterr().err.splitlines()
  assert re.search(message, sentence)


def test_a_bad_line_ends_a_training_with_status_2(
    command, flags, tmp_path):
  (tmp_path / "train.txt").write_text("name : A||A it is .\nname : B\n")
  outcome = command("train", *flags(
      MODEL, "runs/table_to_text", TRAIN_FILE=str(tmp_path / "train.txt"),
      MODEL_DIR=str(tmp_path / "run")))
  assert outcome.status == 2
  [sentence] = outcome.err.strip().splitlines()
  assert "train.txt line 2 has no '||'" in sentence


# ------------------------------------------------------------------ the sweep


@pytest.fixture(scope="module")
def sweep(command, data, base):
  def run(folder, **macros):
    macros = {
        "MODEL_FILE": f"{MODEL}.gin", "INITIAL_CHECKPOINT_PATH": str(base),
        "TRAIN_FILE": str(data / "train.txt"),
        "TABLE_FILES": [str(data / "small.txt")],
        "REFERENCES": {"small": str(data / "small.out")},
        "TRAINED": {"PREFIX_LENGTH": [2, 3]},
        "DECODED": {"NUM_BEAMS": [2, 3], "TEMPERATURE": [0.2, 1.0]},
        "TRAIN_MACROS": {"BATCH_SIZE": 8},
        "DECODE_MACROS": {"BATCH_SIZE": 16, "NEW_TOKENS": 8},
        "SWEEP_OUTPUT_DIR": str(folder)} | macros
    return command(
        "decode_sweep", f"--gin_file={CONFIGS}/runs/table_to_text_sweep.gin",
        *(f"--gin.{name}={value!r}" for name, value in macros.items()))

  return run


@pytest.mark.slow
def test_a_sweep_scores_every_combination_and_goes_on(sweep, data, tmp_path):
  references = tmp_path / "references.out"
  references.write_text((data / "small.out").read_text())
  out = tmp_path / "out"
  run = functools.partial(sweep, out, REFERENCES={"small": str(references)})
  outcome = run()
  assert outcome.status == 0, outcome.err
  rows = json.loads((out / "sweep.json").read_text())
  assert [(one["PREFIX_LENGTH"], one["NUM_BEAMS"], one["TEMPERATURE"])
          for one in rows] == [(p, b, t) for p in (2, 3) for b in (2, 3)
                               for t in (0.2, 1.0)]
  for row in rows:
    # Embedding, an MLP as wide as it, and keys and values of all layers.
    assert row["trained parameters"] == (
        row["PREFIX_LENGTH"] * WIDTH + WIDTH * WIDTH + WIDTH
        + (WIDTH + 1) * LAYERS * 2 * WIDTH)
  assert outcome.result == (out / "sweep.md").read_text()
  assert outcome.result.count("\n") == 2 + 8
  assert (out / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

  # Of two decodings the scores are lost, of one texts, too; nothing else is
  # made again. Random texts are right where the references are such.
  first, second = cells = [out / "PREFIX_LENGTH=3" / name for name in (
      "NUM_BEAMS=2_TEMPERATURE=0.2", "NUM_BEAMS=2_TEMPERATURE=1.0")]
  texts = [(cell / "small.out").read_text() for cell in cells]
  references.write_text("".join(
      f"{number}||{TABLES[int(number)]}||{text or 'nothing'}\n"
      for number, text in (line.split("||", 1) for several in texts
                           for line in several.splitlines()[::2])) + "".join(
      f"{i}||{TABLES[i]}||another text\n" for i in range(10)))
  before = {path: path.stat().st_mtime_ns for path in out.rglob("*")
            if path.name in ("result.json", "train.jsonl")}
  for cell in cells:
    (cell / "result.json").unlink()
  (second / "small.out").unlink()
  whole = (second / "small-generations.jsonl").read_bytes()
  (second / "small-generations.jsonl").write_bytes(
      b"".join(whole.splitlines(keepends=True)[:4]))
  again = run()
  assert again.status == 0, again.err
  after = {path: path.stat().st_mtime_ns for path in before}
  assert {path for path in before if before[path] != after[path]} == {
      first / "result.json", second / "result.json"}
  assert (second / "small.out").read_text() == texts[1]
  scores = [one["small"] for one in json.loads(
      (out / "sweep.json").read_text())][4:6]
  assert scores == pytest.approx([
      checkers_score(one, references.read_text()) for one in texts])
  assert min(scores) > 10
  other = run(TRAIN_MACROS={"BATCH_SIZE": 16})
  assert other.status == 2 and "made with other settings" in other.err


def test_a_row_for_each_combination(tmp_path):
  records = [
      one | {"trained parameters": 46_080, "small": 30.3896, "dev": score}
      for one, score in zip(decode_sweep.combinations(
          {"NUM_BEAMS": [5, 7], "TEMPERATURE": [0.2]}), (30.3138, 21.1418))]
  table = decode_sweep.write(str(tmp_path), records, ["small", "dev"])
  assert [[cell.strip() for cell in line.split("|")[1:-1]]
          for line in table.splitlines() if "-" not in line] == [
      ["NUM_BEAMS", "TEMPERATURE", "trained parameters", "small", "dev"],
      ["5", "0.2", "46080", "30.39", "30.314"],
      ["7", "0.2", "46080", "30.39", "21.142"]]
  assert json.loads((tmp_path / "sweep.json").read_text()) == records
  assert (tmp_path / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("macros, message", [
    ({"TRAINED": {"PREFIX_LENGTH": 5}}, "give a list of different values"),
    ({"DECODED": {"PREFIX_LENGTH": [5]}}, "in TRAINED and in DECODED"),
    ({"REFERENCES": {"small": "none.out"}}, "'none.out', which is no file"),
    ({"REFERENCES": {}}, "REFERENCES is empty"),
    ({"DECODED": {"NUM_BEEMS": [2]}}, "Nothing uses NUM_BEEMS")])
def test_a_slip_shows_before_anything_is_trained(
    sweep, tmp_path, macros, message):
  outcome = sweep(tmp_path, **macros)
  assert outcome.status == 2 and message in outcome.err
  assert not list(tmp_path.rglob("trained"))
