"""The command. Oracle: prompts at known angles."""

import os

import numpy as np
import pytest

from prompt_tuning.formats import card, npy
from prompt_tuning.scripts import similar_prompts

ANGLES = {"qnli": 0, "rte": 20, "sst2": 80, "cola": 120}


@pytest.fixture
def folder(tmp_path):
  for name, degrees in ANGLES.items():
    turned = np.radians(degrees)
    npy.write(tmp_path / f"{name}.npy", np.tile(
        [np.cos(turned), np.sin(turned), 0.0], (4, 1)))
  return tmp_path


def test_every_pair(folder, capsys, tmp_path):
  similar_prompts.main([str(folder), "--picture", str(tmp_path / "map.png")])
  lines = capsys.readouterr().out.splitlines()
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  assert cells[0] == ["prompt", "cola", "qnli", "rte", "sst2"]
  for row in cells[2:]:
    expected = [np.cos(np.radians(ANGLES[row[0]] - ANGLES[other]))
                for other in cells[0][1:]]
    np.testing.assert_allclose(
        [float(cell) for cell in row[1:]], expected, atol=6e-4)
  assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_the_nearest(folder, capsys):
  similar_prompts.main([
      str(folder), "--target", str(folder / "rte.npy"), "--nearest", "2"])
  lines = capsys.readouterr().out.splitlines()[2:]
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  assert cells == [["1", str(folder / "qnli.npy"), "0.9397"],
                   ["2", str(folder / "sst2.npy"), "0.5"]]


def test_the_average_of_the_nearest(folder, tmp_path, capsys):
  """Oracle: the cosines of the angles as weights, in float64."""
  out, target = tmp_path / "start.npy", folder / "rte.npy"
  command = [str(folder), "--target", str(target), "--nearest", "2",
             "--average", str(out)]
  similar_prompts.main(command)
  near, far = np.cos(np.radians([20, 60]))
  expected = sum(
      weight / (near + far) * npy.read(folder / f"{name}.npy").astype(float)
      for name, weight in (("qnli", near), ("sst2", far)))
  np.testing.assert_allclose(npy.read(out), expected, rtol=1e-6, atol=1e-8)
  assert not os.path.lexists(card.card_path(out))  # of an unknown base
  lines = capsys.readouterr().out.splitlines()[2:]
  assert [line.split("|")[-2].strip() for line in lines] == [
      f"{w / (near + far):.4f}" for w in (near, far)]
  card.write_card(
      folder / "sst2.npy", base_model="base", base_fingerprint="a" * 64,
      task="sst2", metric={"accuracy": 90.0}, step=3, settings={})
  similar_prompts.main(command)
  known = card.check(out, "a" * 64, "base")
  assert (known.base_model, known.task, known.metric, known.step) == (
      "base", "", {}, 0)
  assert known.settings == {
      "average_of": {"qnli": pytest.approx(near / (near + far)),
                     "sst2": pytest.approx(far / (near + far))},
      "similar_to": "rte.npy", "similarity": "average"}


def test_bad_input(folder, tmp_path, capsys):
  alone = tmp_path / "alone"
  alone.mkdir()
  npy.write(alone / "a.npy", np.ones((2, 3)))
  for arguments, words in (
      ([tmp_path / "absent"], "is not a folder"),
      ([alone, "--target", alone / "a.npy"], "no prompt but the target"),
      ([folder, "--target", alone / "a.npy", "--nearest", "0"], "1 prompt or"),
      ([folder, "--target", folder / "b.npy"], "There is no"),
      ([folder, "--average", tmp_path / "out.npy"], "needs --target"),
      ([folder, "--target", folder / "qnli.npy", "--average",
        tmp_path / "out.npy"], "has the similarity -0.500 to the target"),
      ([folder, "--metric", "flattened"], "Prompts of")):
    with pytest.raises(SystemExit) as leaving:
      similar_prompts.main([str(a) for a in arguments])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ")
  assert not (tmp_path / "out.npy").exists()
