"""METEOR 1.5 by its program: its own figures, and what goes to and from it.

The package pycocoevalcap carries the program, which the E2E scorer runs, too.
"""

import importlib.util
import os
import pathlib
import shutil

import pytest

from prompt_tuning import errors
from prompt_tuning.metrics import meteor_jar

# Stands for java: notes what it is asked, and scores 0.5, then 0.25 in all.
_PROGRAM = """#!/bin/sh
echo "$@" > "$0.log"
while read -r line; do
  echo "$line" >> "$0.log"
  case "$line" in
    SCORE*) echo "1.0 2.0" ;;
    *) echo 0.5; echo 0.5; echo 0.25 ;;
  esac
done
"""


def java(folder, monkeypatch, text):
  path = folder / "java"
  path.write_text(text)
  path.chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
  (folder / "meteor.jar").write_text("")
  return folder / "meteor.jar"


def test_what_is_asked(tmp_path, monkeypatch):
  jar = java(tmp_path, monkeypatch, _PROGRAM)
  found = meteor_jar.meteor_jar(
      [["A pub.", "the ||| pub"], "x"], ["It's a\npub", ""], jar)
  assert found == {"meteor_jar": 25.0}
  assert (tmp_path / "java.log").read_text().splitlines() == [
      f"-Xmx2G -jar {jar} - - -stdio -l en -norm",
      "SCORE ||| a pub ||| the | | | pub ||| it 's a pub",
      "SCORE ||| x |||",
      "EVAL ||| 1.0 2.0 ||| 1.0 2.0"]


def test_mistakes(tmp_path, monkeypatch):
  jar = java(tmp_path, monkeypatch, "#!/bin/sh\necho 'no memory' >&2\n")
  with pytest.raises(errors.UserError, match=r"stopped \(no memory\): check"):
    meteor_jar.meteor_jar(["a"], ["a"], jar)
  with pytest.raises(errors.UserError, match="is not at nowhere.jar: give"):
    meteor_jar.meteor_jar(["a"], ["a"], "nowhere.jar")
  with pytest.raises(errors.UserError, match="is not named"):
    meteor_jar.meteor_jar(["a"], ["a"])
  assert meteor_jar.meteor_jar([], []) == {"meteor_jar": 0.0}
  monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
  with pytest.raises(errors.UserError, match="no java on the PATH"):
    meteor_jar.meteor_jar(["a"], ["a"], jar)


@pytest.mark.parity
def test_the_program_itself(scored):
  """Its figure for the texts of tests/expectations/text_metrics.json."""
  package = importlib.util.find_spec("pycocoevalcap")
  if package is None or shutil.which("java") is None:
    pytest.skip("needs Java and the package pycocoevalcap")
  jar = pathlib.Path(package.origin).parent / "meteor/meteor-1.5.jar"
  found = meteor_jar.meteor_jar(scored["references"], scored["outputs"], jar)
  assert found == {"meteor_jar": pytest.approx(100 * scored["meteor"])}
