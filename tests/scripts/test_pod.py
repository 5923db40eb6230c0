"""Commands for many hosts. Oracle: the lines that a user would type."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from prompt_tuning import errors
from prompt_tuning.scripts import pod

POD = ["--tpu", "my-pod", "--zone", "us-central2-b"]
WHERE = "my-pod --zone=us-central2-b"
HOSTS = ["--hosts", "ada@gpu0,gpu1"]
RUN = ["--", "--gin_file=a.gin", "--gin.MODEL_DIR='/my runs/1'"]


def lines(capsys, *arguments):
  assert pod.main([*arguments, "--dry-run"] if "--" not in arguments else [
      *arguments[:arguments.index("--")], "--dry-run",
      *arguments[arguments.index("--"):]]) == 0
  return capsys.readouterr().out.splitlines()


def refused(capsys, *arguments):
  with pytest.raises(SystemExit) as leaving:
    pod.main([*arguments])
  assert leaving.value.code == 2
  output = capsys.readouterr()
  assert output.err.count("\n") == 1
  return output.err


def test_a_pod_is_made_and_deleted(capsys):
  assert lines(
      capsys, "create", *POD, "--accelerator", "v4-32", "--project", "p",
      "--spot") == [
          "gcloud compute tpus tpu-vm create my-pod "
          "--accelerator-type=v4-32 --version=tpu-ubuntu2204-base --spot "
          "--zone=us-central2-b --project=p"]
  assert lines(capsys, "delete", *POD) == [
      "gcloud compute tpus tpu-vm delete my-pod --quiet --zone=us-central2-b"]


def remote(line):
  """What the shell of a host gets: the local one took a layer of quotes."""
  return shlex.split(line)[-1].removeprefix("--command=")


def test_a_wheel_is_copied_and_installed_on_all_workers(capsys, tmp_path):
  wheel = tmp_path / "prompt_tuning-1-py3-none-any.whl"
  wheel.write_bytes(b"")
  copy, install = lines(capsys, "install", *POD, "--package", str(wheel))
  assert copy == (f"gcloud compute tpus tpu-vm scp {wheel} my-pod: "
                  "--worker=all --zone=us-central2-b")
  assert "--worker=all" in install
  [command] = [a for a in shlex.split(install) if a.startswith("--command=")]
  assert command.endswith(
      "uv pip install --python .prompt_tuning/bin/python "
      "./prompt_tuning-1-py3-none-any.whl 'jax[tpu]'")
  assert command.count(" && ") == 2


def test_hosts_install_from_an_index(capsys):
  found = lines(capsys, "install", *HOSTS, "--package", "prompt_tuning>=1")
  assert [shlex.split(line)[:4] for line in found] == [
      ["ssh", "-o", "BatchMode=yes", host] for host in ("ada@gpu0", "gpu1")]
  assert remote(found[0]).endswith("'prompt_tuning>=1' 'jax[cuda12]'")


def test_a_run_on_all_workers(capsys):
  [line] = lines(capsys, "run", *POD, *RUN)
  [command] = [a for a in shlex.split(line) if a.startswith("--command=")]
  assert shlex.split(command.removeprefix("--command=")) == [
      "env", "JAX_COORDINATOR_ADDRESS=auto", ".prompt_tuning/bin/python", "-m",
      "prompt_tuning.train", *RUN[1:]]


def test_hosts_are_told_their_number(capsys):
  found = lines(capsys, "run", *HOSTS, "--port", "1234", "--module", "eval",
                *RUN)
  for number, line in enumerate(found):
    assert shlex.split(remote(line)) == [
        "env", "JAX_COORDINATOR_ADDRESS=gpu0:1234", "JAX_NUM_PROCESSES=2",
        f"JAX_PROCESS_ID={number}", ".prompt_tuning/bin/python", "-m",
        "prompt_tuning.eval", *RUN[1:]]


def test_files_are_copied_before_the_run(capsys, tmp_path):
  file = tmp_path / "my words.model"
  file.write_bytes(b"")
  found = lines(capsys, "run", *HOSTS, "--copy", str(file), *RUN)
  assert [shlex.split(line)[:3] for line in found[:2]] == [
      ["scp", "-B", str(file)]] * 2
  assert len(found) == 4


@pytest.mark.parametrize("flags, ending", [
    ([], "-TERM"), (["--now"], "-KILL")])
def test_stop_ends_what_runs_and_nothing_else(capsys, flags, ending):
  """By what `pgrep` says of the pattern, which ends nothing."""
  waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
  ours, other = (
      subprocess.Popen([*waiting, mark], stdin=subprocess.PIPE)
      for mark in ("prompt_tuning.train", "prompt_tuning.scripts.pod"))
  command = remote(lines(capsys, "stop", *HOSTS, *flags)[0])
  assert command.startswith(f"pkill {ending} -f ")
  listing = subprocess.Popen(
      ["/bin/sh", "-c", command.replace(f"pkill {ending}", "pgrep")],
      stdout=subprocess.PIPE, text=True)
  try:
    found = listing.communicate()[0].split()
    assert str(ours.pid) in found
    assert not {str(other.pid), str(listing.pid)} & set(found)
    assert listing.returncode == 0
  finally:
    for child in (ours, other):
      child.communicate()


def test_stop_now_frees_the_tpu(capsys):
  [line] = lines(capsys, "stop", *POD, "--now")
  assert "sudo lsof -t /dev/accel* /dev/vfio/*" in line
  [line] = lines(capsys, "stop", *POD)
  assert "lsof" not in line and "-TERM" in line


def test_a_job_for_slurm(tmp_path, capsys):
  job = tmp_path / "job.sh"
  assert pod.main(["sbatch", "--nodes", "2", "--gpus", "4", "--partition", "a",
                   "--output", str(job), *RUN]) == 0
  assert capsys.readouterr().out.startswith(f"{job}: 8 processes")
  content = job.read_text()
  assert lines(capsys, "sbatch", "--nodes", "2", "--gpus", "4", "--partition",
               "a", *RUN) == content.splitlines()
  assert subprocess.run(["bash", "-n", str(job)]).returncode == 0
  options = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", content))
  assert (options["nodes"], options["ntasks-per-node"],
          options["partition"]) == ("2", "4", "a")
  assert shlex.split(content.splitlines()[-1]) == [
      "exec", "srun", "--kill-on-bad-exit=1", "python3", "-m",
      "prompt_tuning.train", *RUN[1:]]


def test_a_job_is_not_overwritten(tmp_path, capsys):
  job = tmp_path / "job.sh"
  job.write_text("mine")
  assert "give another --output" in refused(
      capsys, "sbatch", "--output", str(job), *RUN)
  assert job.read_text() == "mine"


@pytest.mark.parametrize("arguments, sentence", [
    (["create"], "Give either --tpu"),
    (["stop", *POD, *HOSTS], "Give either --tpu"),
    (["create", *POD], "--accelerator is not given"),
    (["create", "--tpu", "a"], "--zone is not given"),
    (["create", *HOSTS], "create makes TPUs alone"),
    (["delete", *HOSTS], "delete is for TPUs alone"),
    (["install", *POD], "--package is not given"),
    (["install", *POD, "--package", "no.whl"], "There is no file no.whl"),
    (["run", *POD], "needs the flags of the run behind `--`"),
    (["run", *POD, "--copy", "no", *RUN], "There is no file no"),
    (["stop", *POD, *RUN], "stop takes no flags of a run"),
    (["sbatch"], "needs the flags of the run"),
    (["sbatch", "--gpus", "0", *RUN], "must be 1 or more"),
    (["sbatch", "--time", "1h; rm", *RUN], "--time '1h; rm' is not a name"),
    (["stop", "--hosts", "a,-oProxyCommand=x"], "is not a name"),
    (["stop", "--hosts", "a,"], "--hosts '' is not a name"),
    (["stop", "--tpu=--help", "--zone", "z"], "--tpu '--help' is not a name"),
    (["create", *POD, "--accelerator", "v4 32"], "is not a name")])
def test_what_is_refused(capsys, tmp_path, monkeypatch, arguments, sentence):
  monkeypatch.chdir(tmp_path)
  assert sentence in refused(capsys, *arguments)
  assert not os.listdir(tmp_path)


def test_commands_of_a_group_run_side_by_side(tmp_path, capsys):
  """Each waits for the other's file; then the first that fails is the last."""
  first, second = tmp_path / "1", tmp_path / "2"
  wait = "touch \"$0\"; until test -e \"$1\"; do sleep 0.05; done"
  group = [["sh", "-c", wait, str(a), str(b)]
           for a, b in ((first, second), (second, first))]
  never = tmp_path / "never"
  assert pod._execute(
      [group, [["sh", "-c", "exit 3"]], [["touch", str(never)]]]) == 3
  assert first.exists() and second.exists() and not never.exists()
  assert f"+ touch {never}" not in capsys.readouterr().err


def test_a_missing_program(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(errors.UserError, match="ssh is not found: install"):
    pod._execute([[["ssh", "host"]]])
