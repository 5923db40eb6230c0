"""All cells of a comparison: a table, JSON, and a picture."""

from collections.abc import Mapping, Sequence
import io
import json
import os
from typing import Any

import numpy as np

from prompt_tuning import formats
from prompt_tuning.execution import pass_at_k
from prompt_tuning.train import comparison, reporting

TABLE, RECORDS, PICTURE = (
    f"comparison.{suffix}" for suffix in ("md", "json", "png"))

# What runs from 0 to about 10 has a decimal more than percents, as in papers.
_DECIMALS = {"cider": 2, "nist": 2}


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What several seeds of one method on one task say together.

  Args:
    records: of `cells.run`.

  Returns:
    `metric`, the task's first; its `value`, the mean over seeds; `deviation` of
    several seeds, the sample's (n - 1); `interval_95` over problems where each
    has a value, of its mean over seeds; `seeds`; and, if the task has several,
    the `other metrics` by name, each with `value` and `deviation`.
  """
  first = records[0]
  found = {
      "method": first["method"], "task": first["task"],
      "metric": first["metric"], **_over_seeds(
          [one["value"] for one in records]),
      "seeds": len(records), "trained parameters": first["trained parameters"]}
  if all("values" in one for one in records):
    of_problem = np.mean([one["values"] for one in records], axis=0)
    found["problems"] = len(of_problem)
    found["interval_95"] = list(pass_at_k.bootstrap_interval(of_problem))
  if "other metrics" in first:
    found["other metrics"] = {
        name: _over_seeds([one["other metrics"][name] for one in records])
        for name in first["other metrics"]}
  return found


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
  found = {"value": float(np.mean(values))}
  if len(values) > 1:
    found["deviation"] = float(np.std(values, ddof=1))
  return found


def write(
    folder: str, records: Sequence[Mapping[str, Any]], title: str,
    axis: str | None = None, places: Mapping[str, float] | None = None,
) -> str:
  """Writes the three files.

  Args:
    folder: where to.
    records: of all cells so far, in the order of the table.
    title: of the picture.
    axis: see `figure`.
    places: see `figure`.

  Returns:
    The table as markdown.
  """
  groups: dict[tuple[str, str], list] = {}
  for record in records:
    groups.setdefault((record["method"], record["task"]), []).append(record)
  found = {place: summary(group) for place, group in groups.items()}
  table = markdown(found)
  formats.write_whole(os.path.join(folder, TABLE), table.encode())
  formats.write_whole(os.path.join(folder, RECORDS), (json.dumps({
      "summary": list(found.values()), "cells": list(records),
  }, indent=1) + "\n").encode())
  file = io.BytesIO()
  figure(found, title, axis, places).savefig(file, format="png")
  formats.write_whole(os.path.join(folder, PICTURE), file.getvalue())
  return table


def markdown(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
  """A row a method, a column each metric of a task, and what is in them."""
  rows: dict[str, dict[str, str]] = {}
  for (method, task), one in found.items():
    row = rows.setdefault(method, {
        "method": method, "trained": f"{one['trained parameters']:,}"})
    metrics = {one["metric"]: one, **one.get("other metrics", {})}
    for metric, of_metric in metrics.items():
      row[f"{task} ({metric})"] = cell_text(
          of_metric, _DECIMALS.get(metric, 1))
  return comparison.markdown(list(rows.values())) + (
      "\n± is the deviation over seeds, [ ] the 95 % interval over problems.\n")


def cell_text(one: Mapping[str, Any], decimals: int = 1) -> str:
  """`52.1 [45.0, 59.2]`, or `84.4 ± 0.8` of several seeds."""
  text = f"{one['value']:.{decimals}f}"
  if "deviation" in one:
    return f"{text} ± {one['deviation']:.{decimals}f}"
  if "interval_95" in one:
    low, high = one["interval_95"]
    return f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"
  return text


def figure(
    found: Mapping[tuple[str, str], Mapping[str, Any]], title: str,
    axis: str | None = None, places: Mapping[str, float] | None = None,
):
  """A panel a task, of its first metric as `cell_text` has it.

  Args:
    found: of `summary`, by method and task.
    title: of all panels.
    axis: what the methods differ in; None: a bar a method.
    places: the methods' places on that axis, which a line joins; other methods
      are level lines.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  methods = list(dict.fromkeys(method for method, _ in found))
  tasks = list(dict.fromkeys(task for _, task in found))
  width, height = (2.2, 1.2 + 0.35 * len(methods)) if axis is None else (
      3.6, 3.2)
  made = Figure(
      figsize=(1.2 + width * len(tasks), height), dpi=150,
      layout="constrained")
  FigureCanvasAgg(made)
  panels = made.subplots(
      1, len(tasks), squeeze=False, sharey=axis is None)[0]
  for panel, task in zip(panels, tasks):
    of_task = {method: found[method, task] for method in methods
               if (method, task) in found}
    metric = next(iter(of_task.values()))["metric"]
    if axis is None:
      _draw_bars(panel, of_task, methods)
      panel.set_xlabel(metric, fontsize=8)
    else:
      _draw_lines(panel, of_task, methods, places or {})
      panel.set_xlabel(axis, fontsize=8)
      panel.set_ylabel(metric, fontsize=8)
    panel.set_title(task, loc="left", fontsize=9, fontweight="bold")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
  if axis is None:
    panels[0].invert_yaxis()
  made.suptitle(title, fontsize=9)
  return made


def _draw_bars(panel, of_task, methods):
  for row, method in enumerate(methods):
    if method in of_task:
      one = of_task[method]
      panel.barh(row, one["value"], xerr=_error(one), height=0.7,
                 error_kw={"linewidth": 1, "ecolor": "#444444"},
                 color=reporting.line_style(row)["color"])
  panel.set_yticks(range(len(methods)), methods, fontsize=8)


def _draw_lines(panel, of_task, methods, places):
  line = sorted((places[m], of_task[m]["value"], _error(of_task[m]))
                for m in of_task if m in places)
  for x, y, error in line:
    panel.errorbar(x, y, yerr=error, fmt="none", ecolor="#444444", linewidth=1)
  if line:
    panel.plot([x for x, _, _ in line], [y for _, y, _ in line], marker="o",
               markersize=4, **reporting.line_style(0))
    panel.set_xticks([x for x, _, _ in line])
  level = [method for method in methods if method not in places]
  for number, method in enumerate(level, start=1):
    if method in of_task:
      panel.axhline(
          of_task[method]["value"], label=method, linewidth=1.2,
          **reporting.line_style(number) | {"linestyle": "--"})
  if level:
    panel.legend(frameon=False, fontsize=8)


def _error(one: Mapping[str, Any]):
  """The two lengths of an error bar, or None."""
  if "deviation" in one:
    return [[one["deviation"]], [one["deviation"]]]
  if "interval_95" in one:
    low, high = one["interval_95"]
    return [[max(one["value"] - low, 0)], [max(high - one["value"], 0)]]
  return None
