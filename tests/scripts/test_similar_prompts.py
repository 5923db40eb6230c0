"""The command. Oracle: prompts at known angles."""

import numpy as np
import pytest

from prompt_tuning.formats import npy
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


def test_bad_input(folder, tmp_path, capsys):
  alone = tmp_path / "alone"
  alone.mkdir()
  npy.write(alone / "a.npy", np.ones((2, 3)))
  for arguments, words in (
      ([tmp_path / "absent"], "is not a folder"),
      ([alone, "--target", alone / "a.npy"], "no prompt but the target"),
      ([folder, "--target", alone / "a.npy", "--nearest", "0"], "1 prompt or"),
      ([folder, "--target", folder / "b.npy"], "There is no"),
      ([folder, "--metric", "flattened"], "Prompts of")):
    with pytest.raises(SystemExit) as leaving:
      similar_prompts.main([str(a) for a in arguments])
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ")
