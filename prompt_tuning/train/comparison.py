"""What a sweep found: a table to read, one to compute with, and a picture."""

from collections.abc import Mapping, Sequence
import io
import json
import os
from typing import Any

import jax

from prompt_tuning import formats
from prompt_tuning.train import reporting

TABLE = "sweep.md"
RECORDS = "sweep.json"
PICTURE = "sweep.png"


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
  """A table with a row a record, and every name that occurs as a column."""
  columns = list(dict.fromkeys(name for record in records for name in record))
  rows = [[_cell(record.get(name)) for name in columns] for record in records]
  widths = [
      max(map(len, column)) for column in zip(columns, *rows, strict=True)]

  def line(cells):
    return "| " + " | ".join(
        cell.ljust(width) for cell, width in zip(cells, widths)) + " |\n"

  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|\n"
  return line(columns) + rule + "".join(map(line, rows))


def _cell(value) -> str:
  if value is None:
    return ""
  return f"{value:.5g}" if isinstance(value, float) else str(value)


def write(folder: str, records: Sequence[Mapping[str, Any]]) -> str:
  """Writes `sweep.md` and `sweep.json`; gives the markdown."""
  table = markdown(records)
  if jax.process_index() == 0:
    formats.write_whole(os.path.join(folder, TABLE), table.encode())
    formats.write_whole(
        os.path.join(folder, RECORDS),
        (json.dumps(list(records), indent=2) + "\n").encode())
  return table


def draw(folder: str, members: Mapping[str, str]):
  """Draws `sweep.png`: loss and metrics of all members over the steps.

  Args:
    folder: where to.
    members: the folder of each member's logs, by name.
  """
  if jax.process_index() != 0:
    return
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  panels = _panels(members)
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure = Figure(
      figsize=(4.4 * columns, 3.4 * rows + 0.2 * len(members)), dpi=150,
      layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(rows, columns, squeeze=False).flat
  for axis, (title, series) in zip(axes, panels.items()):
    _draw_panel(axis, title, series, list(members))
  for axis in list(axes)[len(panels):]:
    axis.set_axis_off()
  handles, names = axes[0].get_legend_handles_labels()
  figure.legend(
      handles, names, loc="outside lower left", frameon=False, fontsize=8)
  picture = io.BytesIO()
  figure.savefig(picture, format="png")
  formats.write_whole(os.path.join(folder, PICTURE), picture.getvalue())


def _draw_panel(axis, title: str, series: Mapping[str, list], names):
  """One number of all members; a member without it keeps its colour."""
  axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
  for number, name in enumerate(names):
    points = series.get(name, [])
    axis.plot(
        [step for step, _ in points], [value for _, value in points],
        label=name, linewidth=1.4, marker="" if len(points) > 20 else "o",
        markersize=3, **reporting.line_style(number))
  steps = [step for points in series.values() for step, _ in points]
  reporting.finish_panel(axis, min(steps, default=0), max(steps, default=1))


def _panels(members: Mapping[str, str]) -> dict[str, dict[str, list]]:
  """{title: {member: [(step, value), …]}}: the loss, then each metric."""
  panels: dict[str, dict[str, list]] = {"Training loss": {}}
  for name, folder in members.items():
    panels["Training loss"][name] = reporting.training_losses(folder)
    for metric, points in reporting.metric_series(folder).items():
      panels.setdefault(metric, {})[name] = points
  return panels
