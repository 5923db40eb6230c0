"""Similarity of prompts. Oracles: sums over pairs, and known angles."""

import math

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.formats import card, npy
from prompt_tuning.transfer import similarity

DRAW = np.random.default_rng(3)
ONE, OTHER = DRAW.normal(size=(4, 6)), DRAW.normal(size=(7, 6)) + 0.3


def cosine(a, b):
  return sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))


def test_cosines_are_the_papers():
  """Vu et al. 2022, section 4.2, written out."""
  assert similarity.cosine_of_averages(ONE, OTHER) == pytest.approx(
      cosine(ONE.mean(0), OTHER.mean(0)))
  assert similarity.cosine_per_token(ONE, OTHER) == pytest.approx(
      sum(cosine(a, b) for a in ONE for b in OTHER) / (4 * 7))
  assert similarity.cosine_flattened(ONE, OTHER[:4]) == pytest.approx(
      cosine(ONE.ravel(), OTHER[:4].ravel()))


def test_lengths_and_order_of_positions():
  """The length of a prompt's vectors counts in an average alone."""
  scaled = ONE * np.array([[1.0], [2.0], [3.0], [4.0]])
  assert similarity.cosine_per_token(scaled, OTHER) == pytest.approx(
      similarity.cosine_per_token(ONE, OTHER))
  assert similarity.cosine_of_averages(scaled, OTHER) != pytest.approx(
      similarity.cosine_of_averages(ONE, OTHER))
  turned = ONE[::-1]
  assert similarity.cosine_of_averages(ONE, turned) == pytest.approx(1)
  assert similarity.cosine_flattened(ONE, turned) < 0.9
  assert similarity.cosine_of_averages(ONE, np.zeros((2, 6))) == 0


@pytest.mark.parametrize("metric", similarity.METRICS)
def test_similarities_and_nearest(metric):
  """Prompts turned by 10, 50 and 90 degrees from the first."""
  a, b = np.eye(8)[:2]
  prompts = [
      np.tile(math.cos(math.radians(d)) * a + math.sin(math.radians(d)) * b,
              (5, 1)) for d in (0, 10, 50, 90)]
  found = similarity.similarities(prompts, metric)
  angles = np.array([0, 10, 50, 90])
  np.testing.assert_allclose(
      found, np.cos(np.radians(angles[:, None] - angles)), atol=1e-12)
  sources = dict(zip(["far", "near", "middle"], np.take(
      prompts, [3, 1, 2], axis=0)))
  ranked = similarity.nearest(prompts[0], sources, 2, metric)
  assert [name for name, _ in ranked] == ["near", "middle"]
  assert ranked[0][1] == pytest.approx(math.cos(math.radians(10)))


def test_flattened_needs_one_length():
  with pytest.raises(errors.UserError, match="Prompts of 4 and of 7 position"):
    similarity.cosine_flattened(ONE, OTHER)


def test_find_and_read(tmp_path):
  with pytest.raises(errors.UserError, match="holds no prompt"):
    similarity.find(tmp_path)
  with pytest.raises(errors.UserError, match="is not a folder"):
    similarity.find(tmp_path / "absent")
  (tmp_path / "run" / "numpy_checkpoints").mkdir(parents=True)
  (tmp_path / ".hidden").mkdir()
  export = tmp_path / "run/numpy_checkpoints/encoder.prompt.prompt.prompt"
  for path, array in ((tmp_path / "b.npy", ONE), (tmp_path / "a.npy", OTHER),
                      (export, ONE), (tmp_path / ".hidden" / "c.npy", ONE)):
    npy.write(path, array)
  (tmp_path / "train.jsonl").write_text("")
  found = similarity.find(tmp_path)
  assert found == [
      str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), str(export)]
  assert [len(p) for p in similarity.read_all(found)] == [7, 4, 4]
  npy.write(tmp_path / "c.npy", ONE[:, :5])
  with pytest.raises(errors.UserError, match="has width 5 and .* 6, so they"):
    similarity.read_all(similarity.find(tmp_path))
  for path, base in (("a.npy", "0"), ("b.npy", "1")):
    card.write_card(
        tmp_path / path, base_model=f"base_{base}", base_fingerprint=base * 64,
        task="", metric={}, step=0, settings={})
  with pytest.raises(errors.UserError, match="on 'base_1' and .* on 'base_0'"):
    similarity.read_all(found)


def test_draw(tmp_path):
  from matplotlib import image

  path = tmp_path / "map.png"
  values = np.array([[1.0, -0.9], [-0.9, 1.0]])
  similarity.draw(path, ["sst2", "rte"], values, "Similarity")
  picture = image.imread(path)[..., :3]
  pixels = picture.reshape(-1, 3)
  for red, blue in ((0.4, 0.12), (0.02, 0.38)):  # the colours of 1 and of -1
    near = (abs(pixels[:, 0] - red) < 0.15) & (abs(pixels[:, 2] - blue) < 0.25)
    assert near.mean() > 0.05


def test_weighted_average():
  """Oracle: Vu et al. 2022, section 4.3, by hand in float64."""
  sources = {"a": ONE, "b": 2 * ONE + 1, "c": -ONE}
  found = similarity.weights({"a": 0.9, "b": 0.3})
  assert found == pytest.approx({"a": 0.75, "b": 0.25})
  average = similarity.weighted_average(sources, found)
  expected = np.array([
      [0.9 / (0.9 + 0.3) * x + 0.3 / (0.9 + 0.3) * (2 * x + 1) for x in row]
      for row in ONE])
  assert average.dtype == np.float32
  np.testing.assert_array_equal(average, expected.astype(np.float32))
  with pytest.raises(errors.UserError, match="c has the similarity -0.200"):
    similarity.weights({"a": 0.9, "c": -0.2})
  with pytest.raises(errors.UserError, match=r"\(a: 4, b: 7\): average"):
    similarity.weighted_average({"a": ONE, "b": OTHER}, {"a": 0.5, "b": 0.5})
