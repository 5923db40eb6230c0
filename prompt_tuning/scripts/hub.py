"""Gives prompts and adapters to a Hugging Face Hub repository, or takes them.

    python -m prompt_tuning.scripts.hub push --repo me/sst2 --path runs/sst2
    python -m prompt_tuning.scripts.hub pull --repo me/sst2 --path prompts/sst2

What travels are prompts (`.npy` with their cards) and PEFT adapters
(adapter_config.json, adapter_model.safetensors), and README.md: files that are
data. Pickles (`.bin`, `.pt`) and code are neither sent nor fetched, and nothing
that is fetched is run. The token is the one of `hf auth login` or HF_TOKEN.
"""

import argparse
from collections.abc import Iterable
import contextlib
import json
import os
import shutil
import sys

from prompt_tuning import checkpoints, errors, formats
from prompt_tuning.formats import card, npy

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.hub",
      description=__doc__.split("\n")[0])
  commands = parser.add_subparsers(dest="command", required=True)
  for name, path, revision in (
      ("push", "a folder, or one prompt's .npy file", "the branch to push to"),
      ("pull", "a folder to make", "a branch, tag or commit")):
    command = commands.add_parser(name)
    command.add_argument("--repo", required=True, help="owner/name")
    command.add_argument("--path", required=True, help=path)
    command.add_argument("--revision", default=None, help=revision)
    command.add_argument(
        "--endpoint", default=None,
        help="URL of the Hub (default: HF_ENDPOINT, or huggingface.co)")
  commands.choices["push"].add_argument(
      "--private", action="store_true",
      help="make the repository private if it is not there yet")
  flags = parser.parse_args(arguments)
  with errors.reported():
    if flags.command == "push":
      print(push(flags.path, flags.repo, flags.revision, flags.endpoint,
                 flags.private))
    else:
      for file in pull(
          flags.repo, flags.path, flags.revision, flags.endpoint):
        print(file)


def push(
    path: str | os.PathLike,
    repo: str,
    revision: str | None = None,
    endpoint: str | None = None,
    private: bool = False,
) -> str:
  """Sends prompts or an adapter in one commit; makes the repository.

  Args:
    path: a folder with prompts or a PEFT adapter, or one `.npy` file.
    repo: `owner/name`.
    revision: the branch, made if it is not there; the main one if None.
    endpoint: URL of the Hub.
    private: whether a new repository is private.

  Returns:
    The URL of the commit.

  Raises:
    UserError: if there is nothing to send, a file is damaged, the repository
      cannot be written, or it is public and `private` is set.
  """
  import huggingface_hub

  files = _files_to_push(os.fspath(path))
  _check(files)
  with _hub(repo, endpoint, revision, "write") as hub:
    hub.create_repo(repo, private=private or None, exist_ok=True)
    if private and not hub.model_info(repo).private:
      raise errors.UserError(
          f"{repo} is public, so --private cannot be kept: change it in the "
          "repository's settings, or choose another name.")
    if revision:
      hub.create_branch(repo, branch=revision, exist_ok=True)
    commit = hub.create_commit(
        repo, [huggingface_hub.CommitOperationAdd(os.path.basename(f), f)
               for f in files],
        commit_message="Prompt of prompt_tuning", revision=revision)
  return commit.commit_url


def pull(
    repo: str,
    path: str | os.PathLike,
    revision: str | None = None,
    endpoint: str | None = None,
) -> list[str]:
  """Fetches the prompts or the adapter of a repository, all of it or nothing.

  Args:
    repo: `owner/name`.
    path: the folder to make; it may exist if it is empty.
    revision: a branch, tag or commit; the main branch if None.
    endpoint: URL of the Hub.

  Returns:
    The files.

  Raises:
    UserError: if the folder holds something, there is no such repository or
      nothing of ours in it, a file is damaged, or the connection breaks.
  """
  path = os.path.abspath(path)
  with (formats.whole_folder(path, replace_empty=True) as folder,
        _hub(repo, endpoint, revision, "read") as hub):
    found = hub.model_info(repo, revision=revision)
    names = [sibling.rfilename for sibling in found.siblings or ()]
    chosen = _choose(names)
    if not chosen:
      raise errors.UserError(_nothing_to_pull(repo, names))
    for name in chosen:
      # By commit, so that all files are of one state of the repository.
      hub.hf_hub_download(repo, name, revision=found.sha, local_dir=folder)
    # What the client notes of its downloads is of no use to anybody else.
    shutil.rmtree(os.path.join(folder, ".cache"), ignore_errors=True)
    _check([os.path.join(folder, name) for name in chosen])
    for name in chosen:
      with open(os.path.join(folder, name), "rb") as file:
        os.fsync(file.fileno())
    formats.fsync_folder(folder)
  return [os.path.join(path, name) for name in chosen]


# ------------------------------------------------------------ which files go


def _choose(names: Iterable[str]) -> list[str]:
  """Those of a folder's or repository's files that are prompts or adapters."""
  names = sorted(name for name in names if os.path.basename(name) == name)
  # A hidden name could hide from the user; a backslash is a folder elsewhere.
  names = [n for n in names if not n.startswith(".") and "\\" not in n]
  wanted = {name for name in names if name.endswith(".npy")}
  wanted |= {card.card_path(name) for name in wanted}
  if set(ADAPTER) <= set(names):
    wanted |= set(ADAPTER)
  if wanted:
    wanted.add("README.md")
  return [name for name in names if name in wanted]


def _files_to_push(path: str) -> list[str]:
  if os.path.isfile(path) and path.endswith(".npy"):
    beside = card.card_path(path)
    return [path, *([beside] if os.path.isfile(beside) else [])]
  if not os.path.isdir(path):
    raise errors.UserError(
        f"There is no {path}: give a folder with a prompt or a PEFT adapter, "
        "or one prompt's .npy file.")
  names = [entry.name for entry in os.scandir(path) if entry.is_file()]
  chosen = _choose(names)
  if not chosen:
    raise errors.UserError(
        f"{path} holds neither prompts (.npy) nor a PEFT adapter "
        f"({' with '.join(ADAPTER)}): give the folder that does; a run's is "
        "its MODEL_DIR.")
  return [os.path.join(path, name) for name in chosen]


def _nothing_to_pull(repo: str, names: list[str]) -> str:
  pickles = [n for n in names if n.endswith(_PICKLES)]
  if "adapter_config.json" in names and pickles:
    return (
        f"{repo} has its adapter only in {pickles[0]}, a pickle, which is "
        "never read: its owner can save it with safe_serialization=True, or "
        "take the revision where the Hub converted it (such as refs/pr/1).")
  return (f"{repo} holds neither prompts (.npy) nor a PEFT adapter "
          f"({' with '.join(ADAPTER)}).")


def _check(files: list[str]) -> None:
  """Refuses damaged files, before they are sent and after they came."""
  import safetensors

  for file in files:
    if file.endswith(".npy"):
      npy.read(file)
      beside = card.card_path(file)
      if beside in files:  # its own base, so that the checksum alone counts
        known = card.read_card(beside)
        card.check(file, known.base_fingerprint, known.base_model)
    elif os.path.basename(file) == ADAPTER[0]:
      with checkpoints.reading(file), open(file, encoding="utf-8") as stream:
        if not isinstance(json.load(stream), dict):
          raise ValueError("it is not a JSON object")
    elif os.path.basename(file) == ADAPTER[1]:
      with (checkpoints.reading(file, safetensors.SafetensorError),
            safetensors.safe_open(file, framework="numpy")):
        pass


# ------------------------------------------------------------------- the Hub


@contextlib.contextmanager
def _hub(repo: str, endpoint: str | None, revision: str | None, access: str):
  """The Hub's client; what goes wrong with it becomes a sentence."""
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

  if endpoint and not endpoint.startswith(("https://", "http://")):
    raise errors.UserError(
        f"--endpoint {endpoint} is not a URL: it starts with https://.")
  hub = huggingface_hub.HfApi(endpoint=endpoint)
  try:
    yield hub
  except hub_errors.HFValidationError as error:
    raise errors.UserError(
        f"--repo {repo} is not a repository's name ({error}): write "
        "owner/name.") from error
  except hub_errors.RevisionNotFoundError as error:
    raise errors.UserError(
        f"{repo} has no branch, tag or commit {revision}.") from error
  except hub_errors.GatedRepoError as error:
    raise errors.UserError(
        f"{repo} is gated: ask for access on its page at {hub.endpoint}, and "
        "log in with `hf auth login`.") from error
  except hub_errors.RepositoryNotFoundError as error:
    raise errors.UserError(
        f"{repo} is not at {hub.endpoint}, or you may not {access} it: check "
        "the name, and log in with `hf auth login` (or set HF_TOKEN)."
    ) from error
  except hub_errors.LocalTokenNotFoundError as error:
    raise errors.UserError(
        "You are not logged in: run `hf auth login`, or set HF_TOKEN."
    ) from error
  except hub_errors.HfHubHTTPError as error:
    raise errors.UserError(
        _http_sentence(error, repo, hub.endpoint, access)) from error
  except errors.UserError:
    raise
  except (hub_errors.HTTPError, OSError, ValueError, AssertionError) as error:
    raise errors.UserError(
        _failure_sentence(error, repo, hub.endpoint)) from error


def _http_sentence(error, repo: str, endpoint: str, access: str) -> str:
  status = error.response.status_code
  if status in (401, 403):
    return (f"{endpoint} refuses to let you {access} {repo} ({status}): log in "
            f"with `hf auth login` (or set HF_TOKEN) with a token that may "
            f"{access} it.")
  said = " ".join(str(error.server_message or "").split())
  return (f"{endpoint} answered {status} for {repo}"
          f"{f' ({said[:200]})' if said else ''}: try again later, or check "
          "the name and --endpoint.")


def _failure_sentence(error: Exception, repo: str, endpoint: str) -> str:
  """No route, a broken connection, too few bytes, or no room for them."""
  if getattr(error, "errno", None) and not isinstance(error, ConnectionError):
    return (f"The files of {repo} cannot be read or written here: "
            f"{formats.why_not_written(error)}.")
  reason = " ".join(str(error.__cause__ or error).split())
  return (f"{repo} could not be reached at {endpoint} ({reason[:200]}): check "
          "the connection and --endpoint.")


if __name__ == "__main__":
  sys.exit(main())
