"""METEOR 1.5 by its own Java program, which the user has."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile

from prompt_tuning import errors
from prompt_tuning.metrics import penn_tokens, references

_BAR = " ||| "  # between the fields of a request; no text has it


def meteor_jar(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    jar: str | os.PathLike | None = None,
) -> dict[str, float]:
  """Corpus METEOR 1.5 (Denkowski and Lavie 2014), as the E2E scorer has it.

  Runs `meteor-1.5.jar - - -stdio -l en -norm` on the words of `penn_tokens`.
  This is the METEOR of papers on E2E; `meteor` needs no Java and has figures
  of its own.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    jar: meteor-1.5.jar, with data/paraphrase-en.gz beside it.

  Returns:
    {"meteor_jar": percent, 0 to 100}.

  Raises:
    UserError: no Java, no jar, or a program that stops.
  """
  pairs = references.paired(targets, predictions)
  if not pairs:
    return {"meteor_jar": 0.0}
  with _started(_command(jar)) as ask:
    matches = [
        ask(_BAR.join(["SCORE", *map(_spaced, texts), _spaced(prediction)]))
        for prediction, texts in pairs]
    value = ask(_BAR.join(["EVAL", *matches]), lines=len(pairs) + 1)
  return {"meteor_jar": 100.0 * float(value)}


def _spaced(text: str) -> str:
  return " ".join(penn_tokens.tokens(text))


def _command(jar: str | os.PathLike | None) -> list[str]:
  java = shutil.which("java")
  if java is None:
    raise errors.UserError(
        "METEOR 1.5 is a Java program, and there is no java on the PATH: "
        "install one, or take the metric meteor")
  if jar is None or not os.path.isfile(os.path.expanduser(jar)):
    raise errors.UserError(
        "METEOR 1.5 needs meteor-1.5.jar, which "
        + ("is not named" if jar is None else f"is not at {jar}")
        + ": give its path, or take the metric meteor")
  return [java, "-Xmx2G", "-jar", str(pathlib.Path(jar).expanduser()),
          "-", "-", "-stdio", "-l", "en", "-norm"]


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator:
  """A function that sends a line and gives the last of the lines that come."""
  with tempfile.TemporaryFile("w+") as complaints, subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=complaints, encoding="utf-8") as program:

    def ask(line: str, lines: int = 1) -> str:
      try:
        program.stdin.write(f"{line}\n")
        program.stdin.flush()
      except BrokenPipeError:
        pass  # it has stopped, as reading shows
      for _ in range(lines):
        answer = program.stdout.readline().strip()
        if not answer:
          program.wait()
          complaints.seek(0)
          why = complaints.readline().strip() or "no reason given"
          raise errors.UserError(
              f"METEOR's program stopped ({why}): check that {command[3]} is "
              "meteor-1.5.jar and has data/paraphrase-en.gz beside it")
      return answer

    try:
      yield ask
    finally:
      program.kill()  # it waits for more
      with contextlib.suppress(BrokenPipeError):
        program.stdin.close()
