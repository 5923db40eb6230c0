"""What a run tells: the terminal, JSONL and TensorBoard logs, its curve.

A run's directory holds, in the original's layout where it has one,

  train.jsonl                                {"step": 10, "loss": 2.5, …}
  inference_eval/{task}-metrics.jsonl        {"step": 10, "accuracy": 0.9, …}
  inference_eval/{task}-{step:06d}.jsonl     predictions, a row an example
  tensorboard/                               the same numbers, and texts

The steps of a log grow from line to line, whatever was interrupted and resumed
in between. Only process 0 writes and prints.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, Iterable, Mapping, TextIO

import jax
import numpy as np

from prompt_tuning import formats
from prompt_tuning.errors import UserError

TRAIN_LOG = "train.jsonl"
EVALUATION_FOLDER = "inference_eval"
METRICS_SUFFIX = "-metrics.jsonl"


class Reporter:
  """Reports one run, or its continuation; a context manager.

  On a terminal there is a progress bar. Elsewhere there are plain lines, at
  most one in `seconds_between_lines` besides the last step, the evaluations
  and the notes.
  """

  def __init__(
      self,
      directory: str | os.PathLike,
      total_steps: int,
      first_step: int = 0,
      *,
      initial_step: int = 0,
      stream: TextIO | None = None,
      seconds_between_lines: float = 10.0,
      display: Any = None,
  ):
    """Opens the logs, without what was logged after `first_step`.

    Args:
      directory: the run's directory.
      total_steps: the step at which the run ends.
      first_step: the step that this process starts or goes on from.
      initial_step: the step that the run began at, where its bar is empty.
      stream: where to print, None for standard error.
      seconds_between_lines: see the class.
      display: what to show it on, see `part`; None for one of its own.

    Raises:
      UserError: when the directory cannot be written to.
    """
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._directory = pathlib.Path(directory)
    self._first_step = first_step
    with _writing(self._directory):
      (self._directory / EVALUATION_FOLDER).mkdir(parents=True, exist_ok=True)
    self._logs = {}
    for path in (self._directory / TRAIN_LOG, *_metrics_paths(directory)):
      self._log(path)
    self._writer = None
    self._display = display or _display(
        stream or sys.stderr, initial_step, first_step, total_steps,
        seconds_between_lines)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def part(self, directory: str | os.PathLike, name: str) -> "Reporter":
    """A reporter of one of several runs that share this one's terminal."""
    if not self._active:
      return Reporter(directory, 0)
    return Reporter(
        directory, 0, self._first_step, display=_Part(self._display, name))

  def advance(self, step: int) -> None:
    """Moves the bar; cheap enough for every step."""
    if self._active:
      self._display.advance(step, {})

  def train(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs the numbers of training; "loss" is what the terminal shows."""
    if not self._active:
      return
    self._log(self._directory / TRAIN_LOG).write(step, metrics)
    self._tensorboard("train", step, metrics)
    self._display.advance(step, metrics)

  def average(
      self, step: int, epoch: float, metrics: Mapping[str, float]
  ) -> None:
    """Prints training's averages since the last evaluation, if any."""
    if self._active and metrics:
      shown = {name: metrics[name] for name in (
          "loss", "perplexity", "token_accuracy") if name in metrics}
      self._display.note(
          f"step {step:,} · epoch {_short(epoch)} · training · "
          f"{_numbers(shown)}")

  def evaluation(
      self, step: int, task: str, metrics: Mapping[str, Any]
  ) -> None:
    """Logs a task's metrics: numbers, or texts, which are not printed."""
    if not self._active:
      return
    path = self._directory / EVALUATION_FOLDER / f"{task}{METRICS_SUFFIX}"
    self._log(path).write(step, metrics)
    self._tensorboard(f"eval/{task}", step, metrics)
    self._writer.flush()
    self._display.pause()
    self._display.note(f"step {step:,} · {task} · {_numbers(metrics)}")

  def note(self, sentence: str) -> None:
    """Prints a sentence, above the bar if there is one."""
    if self._active:
      self._display.note(sentence)

  def close(self) -> None:
    """Ends the bar and the logs; once is enough, and more do no harm."""
    if not self._active:
      return
    self._display.close()
    if self._writer is not None:
      self._writer.close()
      self._writer = None
    for log in self._logs.values():
      log.close()
    self._logs = {}

  def _log(self, path: pathlib.Path) -> "_Log":
    if path not in self._logs:
      self._logs[path] = _Log(path, self._first_step)
    return self._logs[path]

  def _tensorboard(self, prefix, step, metrics):
    if self._writer is None:
      import tensorboardX  # Takes half a second: not before there is a number.
      # Steps after `first_step` that an interrupted run left are hidden.
      with _writing(self._directory / "tensorboard"):
        self._writer = tensorboardX.SummaryWriter(
            str(self._directory / "tensorboard"),
            purge_step=self._first_step + 1, flush_secs=10)
    for name, value in metrics.items():
      value = _plain(value)
      if isinstance(value, str):
        self._writer.add_text(f"{prefix}/{name}", value, step)
      elif isinstance(value, (int, float)):
        self._writer.add_scalar(f"{prefix}/{name}", value, step)


def write_predictions(
    directory: str | os.PathLike,
    task: str,
    step: int,
    rows: Iterable[Mapping[str, Any]],
) -> pathlib.Path:
  """Writes a task's predictions whole, one JSON object a line.

  Args:
    directory: the run's directory.
    task: the task's name.
    step: the step of the parameters that predicted.
    rows: for each example "input", "target", "output" and "prediction"; arrays
      become lists.

  Returns:
    The path, `inference_eval/{task}-{step:06d}.jsonl`.

  Raises:
    UserError: when it cannot be written.
  """
  path = (
      pathlib.Path(directory) / EVALUATION_FOLDER / f"{task}-{step:06d}.jsonl")
  if jax.process_index() == 0:
    text = "".join(_line(row) for row in rows)
    _write_whole(path, text.encode("utf-8"))
  return path


def learning_curve(
    directory: str | os.PathLike, path_png: str | os.PathLike
) -> None:
  """Draws the loss of training and the metrics of evaluation over the steps.

  Args:
    directory: the run's directory.
    path_png: the picture to write.

  Raises:
    UserError: when nothing was logged, or the picture cannot be written.
  """
  losses = training_losses(directory)
  metrics = metric_series(directory)
  if not losses and not metrics:
    raise UserError(
        f"{directory} has no logged step, so there is no curve to draw; train "
        "for at least one log period.")

  # The canvas without pyplot: no window system, and no state left behind.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  panels = bool(losses) + bool(metrics)
  figure = Figure(figsize=(5.2 * panels, 3.8), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, panels, squeeze=False)[0]
  if losses:
    _draw_loss(axes[0], losses)
  if metrics:
    _draw_metrics(axes[-1], metrics)
  steps = [step for points in (losses, *metrics.values()) for step, _ in points]
  for panel in axes:
    finish_panel(panel, min(steps), max(steps))
  picture = io.BytesIO()
  figure.savefig(picture, format="png")
  _write_whole(pathlib.Path(path_png), picture.getvalue())


# ---------------------------------------------------------------------------
# Logs
# ---------------------------------------------------------------------------


class _Log:
  """A JSONL file whose steps grow.

  One that is there is opened from the start, to fail early; a new one comes
  with its first line, so that what logs nothing leaves no empty file.
  """

  def __init__(self, path: pathlib.Path, first_step: int):
    self._path = path
    self._file = None
    self._last = {"step": -1}
    self._keep(lambda step: step <= first_step)

  def write(self, step: int, record: Mapping[str, Any]) -> None:
    record = {"step": step, **record}
    # A task's losses and its metrics come one after the other, and both again
    # when a run is resumed at the step of an evaluation: one line a step.
    if step == self._last["step"]:
      record = self._last | record
    if step <= self._last["step"]:
      self._keep(lambda kept: kept < step)
    with _writing(self._path):
      if self._file is None:
        self._file = open(self._path, "a", encoding="utf-8")
      self._file.write(_line(record))
      self._file.flush()
    self._last = record

  def _keep(self, condition) -> None:
    """Rewrites the file with the records whose step meets the condition."""
    self.close()
    with _writing(self._path):
      records = [r for r in _read_log(self._path) if condition(r["step"])]
      text = "".join(map(_line, records)).encode("utf-8")
      if self._path.exists():
        if self._path.read_bytes() != text:
          _write_whole(self._path, text)
        self._file = open(self._path, "a", encoding="utf-8")
    self._last = max(
        records, key=lambda record: record["step"], default={"step": -1})

  def close(self) -> None:
    if self._file is not None:
      # A line that failed to be written fails once more, and was reported.
      with contextlib.suppress(OSError):
        self._file.close()
      self._file = None


def _read_log(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a log, without a line that a killed process left broken."""
  records = []
  if path.exists():
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
      with contextlib.suppress(json.JSONDecodeError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
          records.append(record)
  return records


def _metrics_paths(directory) -> list[pathlib.Path]:
  folder = pathlib.Path(directory) / EVALUATION_FOLDER
  return sorted(folder.glob(f"*{METRICS_SUFFIX}"))


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(_plain(record), ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
  """The value in JSON's types; numbers that JSON lacks (NaN) become null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    value = np.asarray(value).tolist()
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


@contextlib.contextmanager
def _writing(path: pathlib.Path):
  """Turns a failure to write into a sentence."""
  try:
    yield
  except OSError as error:
    raise UserError(
        f"Cannot write {path}: {error.strerror or error}; free space there, or "
        "set another output directory.") from error


def _write_whole(path: pathlib.Path, data: bytes) -> None:
  """`formats.write_whole`, its folder made first."""
  with _writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  formats.write_whole(path, data)


# ---------------------------------------------------------------------------
# The terminal
# ---------------------------------------------------------------------------


class _Pace:
  """Steps per second, the recent ones counting most."""

  def __init__(self):
    self._mark = None
    self._rate = None

  def pause(self) -> None:
    """Leaves the time until the next step out (an evaluation)."""
    self._mark = None

  def update(self, step: int) -> None:
    now = time.monotonic()
    if self._mark is None:
      self._mark = (step, now)
      return
    steps, seconds = step - self._mark[0], now - self._mark[1]
    if steps <= 0 or seconds <= 0:
      return
    self._mark = (step, now)
    # Half of the weight on the last 10 seconds, however many calls they had.
    weight = 1.0 if self._rate is None else 1.0 - 0.5 ** (seconds / 10.0)
    self._rate = weight * steps / seconds + (1 - weight) * (self._rate or 0.0)

  def text(self, steps_left: int) -> list[str]:
    if not self._rate:
      return []
    rate = self._rate
    speed = (f"{_short(rate)} steps/s" if rate >= 1
             else f"{_short(1 / rate)} s/step")
    if steps_left <= 0:
      return [speed]
    return [speed, f"{_duration(steps_left / rate)} left"]


class _Lines:
  """Plain lines, for files and pipes."""

  def __init__(self, stream, total_steps, seconds_between_lines):
    self._stream = stream
    self._total = total_steps
    self._seconds = seconds_between_lines
    self._printed = -math.inf
    self._pace = _Pace()

  def advance(self, step, metrics):
    self._pace.update(step)
    now = time.monotonic()
    waited = now - self._printed >= self._seconds
    if metrics and (waited or step >= self._total):
      self._printed = now
      self.note(" · ".join([
          f"step {step:,} of {self._total:,}", *_loss(metrics),
          *self._pace.text(self._total - step)]))

  def pause(self):
    self._pace.pause()

  def note(self, sentence):
    print(sentence, file=self._stream, flush=True)

  def close(self):
    pass


class _Bar:
  """A progress bar, for terminals."""

  def __init__(self, stream, initial_step, first_step, total_steps):
    from rich import console, progress
    self._total = total_steps
    self._initial = initial_step
    self._loss = []
    self._pace = _Pace()
    self._progress = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.fields[status]}"),
        console=console.Console(file=stream), expand=True,
        refresh_per_second=4)
    self._task = self._progress.add_task(
        "", total=max(total_steps - initial_step, 1), status="starting")
    self._show(first_step, "starting")
    self._progress.start()

  def advance(self, step, metrics):
    self._pace.update(step)
    self._loss = _loss(metrics) or self._loss
    self._show(step, " · ".join(
        [*self._loss, *self._pace.text(self._total - step)]))

  def _show(self, step, status):
    self._progress.update(
        self._task, completed=step - self._initial, status=status,
        description=f"step {step:,} of {self._total:,}")

  def pause(self):
    self._pace.pause()

  def note(self, sentence):
    # A sentence may hold brackets, which are rich's markup, and be long.
    self._progress.console.print(
        sentence, markup=False, highlight=False, soft_wrap=True)

  def close(self):
    self._progress.stop()


class _Part:
  """What one of several runs shows: its sentences, under its name."""

  def __init__(self, display, name):
    self._display = display
    self._name = name

  def advance(self, step, metrics):
    pass  # The runs move together, and the whole shows how far.

  def pause(self):
    self._display.pause()

  def note(self, sentence):
    self._display.note(f"{self._name} · {sentence}")

  def close(self):
    pass


def _display(stream, initial_step, first_step, total_steps, seconds):
  if stream.isatty():
    return _Bar(stream, initial_step, first_step, total_steps)
  return _Lines(stream, total_steps, seconds)


def _loss(metrics: Mapping[str, Any]) -> list[str]:
  return [f"loss {_short(float(metrics['loss']))}"] if "loss" in metrics else []


def _numbers(metrics: Mapping[str, Any]) -> str:
  """The scalars of an evaluation in words."""
  numbers = {name: _plain(value) for name, value in metrics.items()}
  return " · ".join(
      f"{name} {_short(value)}" for name, value in numbers.items()
      if isinstance(value, (int, float))) or "no numbers"


def _short(value: float) -> str:
  """Four digits, and no exponent for large numbers."""
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else (
      f"{minutes}:{seconds:02d}")


# ---------------------------------------------------------------------------
# The curve
# ---------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _series(records, name) -> list[tuple[int, float]]:
  """(step, value) of the records that have the number."""
  return [
      (record["step"], record[name]) for record in records
      if isinstance(record.get(name), (int, float))]


def training_losses(directory) -> list[tuple[int, float]]:
  """(step, loss) of each line of a run's log."""
  return _series(_read_log(pathlib.Path(directory) / TRAIN_LOG), "loss")


def metric_series(directory) -> dict[str, list[tuple[int, float]]]:
  """{"task metric": [(step, value), …]} of all evaluations."""
  series = {}
  for path in _metrics_paths(directory):
    task = path.name.removesuffix(METRICS_SUFFIX)
    records = _read_log(path)
    for name in dict.fromkeys(key for record in records for key in record):
      points = _series(records, name)
      # Perplexity is the loss once more, on a scale that hides the others.
      if name not in ("step", "perplexity") and points:
        series[f"{task} {name}"] = points
  return series


def _smoothed(values: np.ndarray) -> np.ndarray:
  """A centred average over a twentieth of the values, less at the ends."""
  window = np.ones(max(len(values) // 20, 1) | 1)
  counts = np.convolve(np.ones(len(values)), window, mode="same")
  return np.convolve(values, window, mode="same") / counts


def _draw_loss(axes, points) -> None:
  steps, losses = np.transpose(points)
  axes.set_title("Training loss", loc="left", fontsize=10, fontweight="bold")
  axes.plot(steps, losses, color=_COLOURS[0], alpha=0.25, linewidth=0.8)
  axes.plot(steps, _smoothed(losses), color=_COLOURS[0], linewidth=1.8)
  if losses.min() > 0 and losses.max() > 100 * losses.min():
    axes.set_yscale("log")
  else:
    axes.set_ylim(bottom=min(0.0, losses.min()))


def line_style(number: int) -> dict[str, str]:
  """Colour and dashes that tell up to 18 lines apart."""
  return {"color": _COLOURS[number % len(_COLOURS)],
          "linestyle": ("-", "--", ":")[number // len(_COLOURS) % 3]}


def _draw_metrics(axes, metrics: Mapping[str, list]) -> None:
  axes.set_title("Evaluation", loc="left", fontsize=10, fontweight="bold")
  for i, (label, points) in enumerate(metrics.items()):
    steps, values = np.transpose(points)
    axes.plot(
        steps, values, label=f"{label}  {_short(values[-1])}",
        linewidth=1.6, marker="o", markersize=3.5, clip_on=False,
        **line_style(i))
  values = [value for points in metrics.values() for _, value in points]
  axes.set_ylim(min(0.0, *values), 1.04 * max(values) or 1.0)
  axes.legend(frameon=False, fontsize=8, loc="best")


def finish_panel(axes, first: int, last: int) -> None:
  """The same plain look, and the same steps, for every panel."""
  from matplotlib import ticker
  axes.set_xlabel("step", fontsize=9)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color("#888888")
  axes.grid(axis="y", color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)
  axes.tick_params(which="both", labelsize=8, length=0, colors="#444444")
  axes.set_xlim(first, max(last, first + 1))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
