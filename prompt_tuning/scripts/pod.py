"""One run on many hosts: a TPU pod, hosts with GPUs, or a Slurm cluster.

    pod=(--tpu my-pod --zone us-central2-b)
    python -m prompt_tuning.scripts.pod create "${pod[@]}" --accelerator v4-32
    python -m prompt_tuning.scripts.pod install "${pod[@]}" --package X.whl
    python -m prompt_tuning.scripts.pod run "${pod[@]}" -- --gin_file=… …
    python -m prompt_tuning.scripts.pod stop "${pod[@]}"
    python -m prompt_tuning.scripts.pod delete "${pod[@]}"

`--hosts gpu0,gpu1` instead of the pod's name goes to hosts by ssh, and `sbatch`
writes a job for Slurm. `--dry-run` prints what would be done, exactly. See
docs/many_hosts.md.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys

from prompt_tuning import errors

# Commands that run side by side; a plan is one such group after the other.
Commands = list[list[str]]

_ENVIRONMENT = ".prompt_tuning"  # in the home of every host
_PYTHON = f"{_ENVIRONMENT}/bin/python"
# The brackets keep a pattern from matching the command that holds it.
_OURS = "[p]rompt_tuning[.](train|eval|infer)"
_HOLDERS = ("sudo lsof -t /dev/accel* /dev/vfio/* 2>/dev/null"
            " | xargs -r sudo kill -KILL")
_GET = {"gcloud": "install the Google Cloud CLI and log in",
        "ssh": "install OpenSSH", "scp": "install OpenSSH"}


class _Pod:
  """The workers of a TPU pod, reached by gcloud."""

  jax = "jax[tpu]"

  def __init__(self, flags):
    self._name = _checked("--tpu", flags.tpu)
    if flags.zone is None:
      raise errors.UserError("--zone is not given: name the zone of the TPU.")
    self._where = [f"--zone={_checked('--zone', flags.zone)}"]
    if flags.project:
      self._where.append(f"--project={_checked('--project', flags.project)}")

  def create(self, flags) -> Commands:
    if flags.accelerator is None:
      raise errors.UserError(
          "--accelerator is not given: such as v4-32 or v5litepod-16.")
    return [self._gcloud(
        "create", self._name,
        f"--accelerator-type={_checked('--accelerator', flags.accelerator)}",
        f"--version={_checked('--runtime', flags.runtime)}",
        *(["--spot"] if flags.spot else []))]

  def delete(self) -> Commands:
    return [self._gcloud("delete", self._name, "--quiet")]

  def copy(self, paths: list[str]) -> Commands:
    return [self._gcloud("scp", *paths, f"{self._name}:", "--worker=all")]

  def everywhere(self, command: str) -> Commands:
    return [self._gcloud(
        "ssh", self._name, "--worker=all", f"--command={command}")]

  def run(self, command: list[str]) -> Commands:
    # JAX asks the TPU for the other workers.
    return self.everywhere(
        shlex.join(["env", "JAX_COORDINATOR_ADDRESS=auto", *command]))

  def stop(self, now: bool) -> Commands:
    return self.everywhere(_ending(now) + (f"; {_HOLDERS}" if now else ""))

  def _gcloud(self, verb: str, *arguments: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, *arguments,
            *self._where]


class _Hosts:
  """Hosts with GPUs, one process each, reached by ssh."""

  jax = "jax[cuda12]"

  def __init__(self, flags):
    self._hosts = [
        _checked("--hosts", host) for host in flags.hosts.split(",")]
    self._port = flags.port

  def create(self, flags) -> Commands:
    raise errors.UserError("create makes TPUs alone: give --tpu, not --hosts.")

  def delete(self) -> Commands:
    raise errors.UserError(
        "delete is for TPUs alone: give --tpu, not --hosts.")

  def copy(self, paths: list[str]) -> Commands:
    return [["scp", "-B", *paths, f"{host}:"] for host in self._hosts]

  def everywhere(self, command: str) -> Commands:
    return [_ssh(host, command) for host in self._hosts]

  def run(self, command: list[str]) -> Commands:
    first = self._hosts[0].rpartition("@")[2]
    return [
        _ssh(host, shlex.join([
            "env", f"JAX_COORDINATOR_ADDRESS={first}:{self._port}",
            f"JAX_NUM_PROCESSES={len(self._hosts)}",
            f"JAX_PROCESS_ID={number}", *command]))
        for number, host in enumerate(self._hosts)]

  def stop(self, now: bool) -> Commands:
    return self.everywhere(_ending(now))


def main(arguments=None) -> int:
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  mine, run_flags = arguments, []
  if "--" in arguments:
    at = arguments.index("--")
    mine, run_flags = arguments[:at], arguments[at + 1:]
  flags = _parser().parse_args(mine)
  with errors.reported():
    if flags.action == "sbatch":
      return _write_job(flags, run_flags)
    groups = plan(flags, run_flags)
    if flags.dry_run:
      for group in groups:
        for command in group:
          print(shlex.join(command))
      return 0
    return _execute(groups)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.pod", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
      epilog="The flags of the run itself stand behind `--`.")
  parser.add_argument("action", choices=[
      "create", "install", "run", "stop", "delete", "sbatch"])
  parser.add_argument("--dry-run", action="store_true",
                      help="print the commands, or the job")
  parser.add_argument("--tpu", metavar="NAME", help="of the TPU pod")
  parser.add_argument("--zone", help="of the TPU pod")
  parser.add_argument("--project", help="of the TPU pod; gcloud's own if none")
  parser.add_argument("--accelerator", help="create: such as v4-32")
  parser.add_argument("--runtime", default="tpu-ubuntu2204-base",
                      help="create: the software of the TPU VM (%(default)s)")
  parser.add_argument("--spot", action="store_true",
                      help="create: cheaper, may be taken away")
  parser.add_argument("--hosts", help="for ssh, separated by commas")
  parser.add_argument("--port", type=int, default=8476,
                      help="of the first host, that the others reach "
                      "(%(default)s)")
  parser.add_argument("--package", help="install: a wheel, or what pip takes")
  parser.add_argument("--copy", action="append", default=[], metavar="FILE",
                      help="run: to every home first; may be repeated")
  parser.add_argument("--module", default="train",
                      choices=["train", "eval", "infer"],
                      help="run, sbatch: what to run (%(default)s)")
  parser.add_argument("--now", action="store_true",
                      help="stop: without saving, whatever holds the TPU")
  parser.add_argument("--nodes", type=int, default=1, help="sbatch")
  parser.add_argument("--gpus", type=int, default=8,
                      help="sbatch: of a node, one process each (%(default)s)")
  parser.add_argument("--time", default="24:00:00", help="sbatch: the limit")
  parser.add_argument("--partition", help="sbatch")
  parser.add_argument("--output", default="job.sh",
                      help="sbatch: the file to write (%(default)s)")
  return parser


def plan(flags: argparse.Namespace, run_flags: list[str]) -> list[Commands]:
  """The commands of an action.

  Args:
    flags: of `_parser`.
    run_flags: of the run itself.

  Returns:
    Groups of commands, one after the other; those of a group side by side.

  Raises:
    UserError: if a flag is missing or cannot be part of a command.
  """
  if (flags.tpu is None) == (flags.hosts is None):
    raise errors.UserError(
        "Give either --tpu, the name of a TPU pod, or --hosts.")
  if run_flags and flags.action != "run":
    raise errors.UserError(
        f"{flags.action} takes no flags of a run: leave out what is behind "
        "`--`.")
  hosts = (_Hosts if flags.tpu is None else _Pod)(flags)
  if flags.action == "create":
    return [hosts.create(flags)]
  if flags.action == "install":
    return _install(hosts, flags.package)
  if flags.action == "run":
    command = [_PYTHON, *_module(flags, run_flags)]
    copies = [hosts.copy([_local(path) for path in flags.copy])]
    return (copies if flags.copy else []) + [hosts.run(command)]
  if flags.action == "stop":
    return [hosts.stop(flags.now)]
  return [hosts.delete()]


def _install(hosts: _Pod | _Hosts, package: str | None) -> list[Commands]:
  """An environment of its own: TPU VMs come with an older Python."""
  if package is None:
    raise errors.UserError(
        "--package is not given: make one with `python -m pip wheel . "
        "--no-deps -w dist`, or name what pip can install.")
  copies = []
  if os.path.exists(package) or package.endswith(".whl"):
    copies = [hosts.copy([_local(package)])]
    package = "./" + os.path.basename(package)
  steps = [
      ["python3", "-m", "pip", "install", "--user", "--upgrade", "uv"],
      ["python3", "-m", "uv", "venv", "--allow-existing", "--python", "3.12",
       _ENVIRONMENT],
      ["python3", "-m", "uv", "pip", "install", "--python", _PYTHON, package,
       hosts.jax]]
  return copies + [hosts.everywhere(" && ".join(map(shlex.join, steps)))]


def _ending(now: bool) -> str:
  """Ends our commands; they save first unless it is now. None is no error."""
  command = ["pkill", "-KILL" if now else "-TERM", "-f", _OURS]
  return f"{shlex.join(command)} || true"


def _module(flags, run_flags: list[str]) -> list[str]:
  if not run_flags:
    raise errors.UserError(
        f"{flags.action} needs the flags of the run behind `--`, such as "
        "-- --gin_file=prompt_tuning/configs/runs/prompt_finetune.gin.")
  return ["-m", f"prompt_tuning.{flags.module}", *run_flags]


def _ssh(host: str, command: str) -> list[str]:
  # Several run side by side: none may ask for a password.
  return ["ssh", "-o", "BatchMode=yes", host, command]


def _checked(flag: str, value: str) -> str:
  """A name that no command can take for a flag or a path."""
  if not re.fullmatch(r"\w[\w.:-]*(@\w[\w.-]*)?", value, re.ASCII):
    raise errors.UserError(
        f"{flag} {value!r} is not a name: letters, digits, dots and hyphens.")
  return value


def _local(path: str) -> str:
  if not os.path.isfile(path):
    raise errors.UserError(f"There is no file {path}: check the path.")
  return os.path.abspath(path)


def _write_job(flags, run_flags: list[str]) -> int:
  """Writes, or prints, a job for `sbatch`."""
  if flags.nodes < 1 or flags.gpus < 1:
    raise errors.UserError("--nodes and --gpus must be 1 or more.")
  content = _job(flags, _module(flags, run_flags))
  if flags.dry_run:
    print(content, end="")
    return 0
  try:
    with open(flags.output, "x", encoding="utf-8") as stream:
      stream.write(content)
  except OSError as error:
    raise errors.UserError(
        f"{flags.output} cannot be written ({error.strerror}): give another "
        "--output.") from error
  print(f"{flags.output}: {flags.nodes * flags.gpus} processes; start it, and "
        f"go on with it, by: sbatch {shlex.quote(flags.output)}")
  return 0


def _job(flags, module: list[str]) -> str:
  options = [
      "--job-name=prompt_tuning", f"--nodes={flags.nodes}",
      # JAX gives each task of a node the GPU of its number.
      f"--ntasks-per-node={flags.gpus}", f"--gpus-per-node={flags.gpus}",
      f"--time={_checked('--time', flags.time)}",
      *([f"--partition={_checked('--partition', flags.partition)}"]
        if flags.partition else []),
      # A run saves when it is asked to end, and goes on when a node is lost.
      "--signal=TERM@120", "--requeue", "--open-mode=append"]
  command = ["srun", "--kill-on-bad-exit=1", "python3", *module]
  return "\n".join([
      "#!/bin/bash", *(f"#SBATCH {option}" for option in options), "",
      "export JAX_COORDINATOR_ADDRESS=auto  # JAX asks Slurm",
      f"exec {' '.join(map(shlex.quote, command))}", ""])


def _execute(groups: list[Commands]) -> int:
  """Runs the groups; the first one that fails is the last."""
  for group in groups:
    for command in group:
      print("+", shlex.join(command), file=sys.stderr)
    try:
      children = [subprocess.Popen(command) for command in group]
    except FileNotFoundError as error:
      program = group[0][0]
      raise errors.UserError(
          f"{program} is not found: {_GET[program]}.") from error
    status = max(abs(child.wait()) for child in children)
    if status:
      return status
  return 0


if __name__ == "__main__":
  sys.exit(main())
