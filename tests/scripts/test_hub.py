"""Push and pull against a Hub on this machine.

The Hub here speaks the few routes of the real one that the client asks for,
and keeps every commit; what was pushed must come back byte for byte.
"""

import base64
import hashlib
import http.server
import json
import os
import threading
import urllib.parse

import numpy as np
import pytest
from safetensors import numpy as safetensors

from prompt_tuning.formats import card, npy
from prompt_tuning.scripts import hub

TOKEN = "hf_only_for_tests"


class Repository:
  """Branches of commits of files."""

  def __init__(self, private=False):
    self.private = private
    self.commits = {}  # sha -> {file name: content}
    self.branches = {}
    self.commit("main", {})

  def commit(self, branch, files):
    previous = self.commits.get(self.branches.get(branch), {})
    sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
    self.commits[sha] = previous | files
    self.branches[branch] = sha
    return sha

  def files(self, revision="main"):
    return self.commits[self.branches.get(revision, revision)]


class Handler(http.server.BaseHTTPRequestHandler):
  """One request; `self.server` holds the repositories and what to break."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *arguments):
    del arguments

  def _answer(self, status, content=None, headers=(), body=None):
    body = json.dumps(content).encode() if body is None else body
    self.send_response(status)
    for name, value in headers:
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def _refuse(self, status, code):
    self._answer(status, {"error": code}, [("X-Error-Code", code)])

  def _repository(self, name):
    found = self.server.repositories.get(name)
    if found is None or (found.private and not self._authorized()):
      self._refuse(401, "RepoNotFound")
      return None
    return found

  def _authorized(self):
    return self.headers.get("Authorization") == f"Bearer {TOKEN}"

  def do_POST(self):
    text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if self.headers.get("Transfer-Encoding") == "chunked":
      text = b"".join(iter(self._chunk, b""))
    path = [urllib.parse.unquote(part) for part in self.path.split(
        "?")[0].strip("/").split("/")]
    self.server.requests.append(("POST", self.path))
    if path == ["api", "validate-yaml"]:
      return self._answer(200, {"errors": [], "warnings": []})
    if not self._authorized():
      return self._refuse(401, "Unauthorized")
    if path == ["api", "repos", "create"]:
      return self._create(json.loads(text))
    repository = self._repository("/".join(path[2:4]))
    if repository is None:
      return None
    if path[4] == "branch":
      if path[5] in repository.branches:
        return self._refuse(409, "Exists")
      repository.branches[path[5]] = repository.branches["main"]
      return self._answer(200, {})
    if path[4] == "preupload":
      return self._answer(200, {"files": [
          {"path": file["path"], "uploadMode": "regular",
           "shouldIgnore": False} for file in json.loads(text)["files"]]})
    assert path[4] == "commit"
    lines = [json.loads(line) for line in text.splitlines()]
    sha = repository.commit(path[5], {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines if line["key"] == "file"})
    return self._answer(200, {
        "commitUrl": f"{self.server.url}/{'/'.join(path[2:4])}/commit/{sha}",
        "commitOid": sha, "success": True})

  def _chunk(self):
    size = int(self.rfile.readline(), 16)
    content = self.rfile.read(size)
    self.rfile.readline()
    return content

  def _create(self, wanted):
    name = f"{wanted['organization']}/{wanted['name']}"
    if name in self.server.repositories:
      return self._answer(
          409, {"url": f"{self.server.url}/{name}", "error": "exists"})
    private = (wanted.get("visibility") == "private"
               or bool(wanted.get("private")))
    self.server.repositories[name] = Repository(private)
    return self._answer(200, {"url": f"{self.server.url}/{name}"})

  def do_GET(self):
    path = [urllib.parse.unquote(part) for part in self.path.split(
        "?")[0].strip("/").split("/")]
    self.server.requests.append((self.command, self.path))
    if path[:2] == ["api", "models"]:
      return self._info("/".join(path[2:4]), path[4:])
    repository = self._repository("/".join(path[:2]))
    if repository is None:
      return None
    assert path[2] == "resolve"
    revision, name = path[3], "/".join(path[4:])
    content = repository.files(revision)[name]
    headers = [
        ("ETag", f'"{hashlib.sha1(content).hexdigest()}"'),
        ("X-Repo-Commit", repository.branches.get(revision, revision))]
    if self.command == "GET" and name == self.server.cut_off:
      self.send_response(200)
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content[:len(content) // 2])
      self.close_connection = True
      return None
    return self._answer(200, body=content, headers=headers)

  do_HEAD = do_GET

  def _info(self, name, rest):
    repository = self._repository(name)
    if repository is None:
      return None
    revision = rest[1] if rest[:1] == ["revision"] else "main"
    if revision not in {*repository.branches, *repository.commits}:
      return self._refuse(404, "RevisionNotFound")
    if rest[:1] == ["tree"]:
      return self._answer(200, [
          {"type": "file", "path": file, "size": len(content),
           "oid": hashlib.sha1(content).hexdigest()}
          for file, content in repository.files(rest[1]).items()])
    files = self.server.listing or repository.files(revision)
    return self._answer(200, {
        "id": name, "sha": repository.branches.get(revision, revision),
        "private": repository.private,
        "siblings": [{"rfilename": file} for file in files]})


@pytest.fixture
def server(monkeypatch):
  """A running Hub, and the environment of a user who is logged in."""
  pytest.importorskip("huggingface_hub")
  running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  running.url = f"http://127.0.0.1:{running.server_port}"
  running.repositories, running.requests = {}, []
  running.cut_off = running.listing = None
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  thread = threading.Thread(
      target=running.serve_forever, kwargs={"poll_interval": 0.01})
  thread.start()
  yield running
  running.shutdown()
  running.server_close()
  thread.join()


@pytest.fixture
def adapter(tmp_path):
  """A PEFT directory, with things beside it that are not to travel."""
  folder = tmp_path / "adapter"
  folder.mkdir()
  (folder / "adapter_config.json").write_text(json.dumps(
      {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, indent=2))
  safetensors.save_file(
      {"prompt_embeddings": np.arange(6, dtype=np.float32).reshape(2, 3)},
      folder / "adapter_model.safetensors", metadata={"format": "pt"})
  (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
  (folder / "optimizer.pt").write_bytes(b"a pickle")
  (folder / "secrets.json").write_text("{}")
  (folder / "run.py").write_text("raise SystemExit")
  return folder


@pytest.fixture
def prompt(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  npy.write(folder / "prompt.npy", np.full((5, 8), 0.25))
  card.write_card(
      folder / "prompt.npy", base_model="gpt2", base_fingerprint="0" * 64,
      task="sst2", metric={"accuracy": 90.0}, step=3, settings={})
  (folder / "config.gin").write_text("# settings")
  return folder / "prompt.npy"


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(capsys, *arguments):
  """Exit status, and the only line of standard error that is ours."""
  try:
    hub.main([str(argument) for argument in arguments])
    status = 0
  except SystemExit as leaving:
    status = leaving.code
  out, err = capsys.readouterr()
  said = [line for line in err.splitlines() if line.startswith("error: ")]
  assert len(said) == (status == 2), err
  return status, (said[0] if said else out)


ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors",
                 "README.md"}


def test_adapter_goes_and_comes_back(server, adapter, tmp_path, capsys):
  status, url = run(capsys, "push", "--repo", "me/sst2", "--path", adapter,
                    "--endpoint", server.url)
  assert status == 0
  [sent] = server.repositories.values()
  assert set(sent.files()) == ADAPTER_FILES
  assert url.strip().endswith(sent.branches["main"])
  status, listed = run(capsys, "pull", "--repo", "me/sst2", "--path",
                       tmp_path / "new" / "sst2", "--endpoint", server.url)
  assert status == 0
  assert {os.path.basename(line) for line in listed.split()} == ADAPTER_FILES
  pulled = contents(tmp_path / "new" / "sst2")
  assert pulled == {n: (adapter / n).read_bytes() for n in ADAPTER_FILES}
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["sst2"]


@pytest.mark.parametrize("whole_folder", [True, False])
def test_prompt_goes_with_its_card(
    server, prompt, tmp_path, whole_folder):
  path = prompt.parent if whole_folder else prompt
  hub.push(path, "me/prompt", endpoint=server.url)
  files = hub.pull("me/prompt", tmp_path / "pulled", endpoint=server.url)
  assert [os.path.basename(f) for f in files] == ["prompt.json", "prompt.npy"]
  assert (npy.read(files[1]) == 0.25).all()
  assert card.read_card(files[0]).task == "sst2"


def test_revisions(server, prompt, tmp_path):
  hub.push(prompt, "me/prompt", endpoint=server.url)
  first = server.repositories["me/prompt"].branches["main"]
  old = prompt.read_bytes()
  os.remove(card.card_path(prompt))
  npy.write(prompt, np.full((5, 8), 0.5))
  hub.push(prompt, "me/prompt", endpoint=server.url, revision="longer")
  for revision, value in ((None, 0.25), (first, 0.25)):
    [*_, file] = hub.pull(
        "me/prompt", tmp_path / f"at-{revision}", revision, server.url)
    assert (npy.read(file) == value).all()
    with open(file, "rb") as stream:
      assert stream.read() == old
  # The old card is in the branch too, and is not of this prompt.
  with pytest.raises(ValueError, match="is not the file that its card"):
    hub.pull("me/prompt", tmp_path / "longer", "longer", server.url)
  assert not (tmp_path / "longer").exists()


def test_private(server, prompt, capsys, monkeypatch, tmp_path):
  hub.push(prompt, "me/secret", endpoint=server.url, private=True)
  assert server.repositories["me/secret"].private
  hub.push(prompt, "me/open", endpoint=server.url)
  pushed = len(server.repositories["me/open"].commits)
  status, said = run(capsys, "push", "--repo", "me/open", "--path", prompt,
                     "--private", "--endpoint", server.url)
  assert status == 2 and "me/open is public" in said
  assert len(server.repositories["me/open"].commits) == pushed
  monkeypatch.setenv("HF_TOKEN", "hf_of_another_user")
  status, said = run(capsys, "pull", "--repo", "me/secret", "--path",
                     tmp_path / "new", "--endpoint", server.url)
  assert status == 2 and "me/secret is not at" in said and "HF_TOKEN" in said
  status, said = run(capsys, "push", "--repo", "me/secret", "--path", prompt,
                     "--endpoint", server.url)
  assert status == 2 and "HF_TOKEN" in said


def test_pull_of_what_is_not_there(server, prompt, tmp_path, capsys):
  hub.push(prompt, "me/prompt", endpoint=server.url)
  for repo, revision, expected in (
      ("me/other", "main", "me/other is not at"),
      ("me/prompt", "v2", "no branch, tag or commit v2"),
      ("me/prompt/x", "main", "not a repository's name")):
    status, said = run(
        capsys, "pull", "--repo", repo, "--revision", revision, "--path",
        tmp_path / "new", "--endpoint", server.url)
    assert status == 2 and expected in said
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_pull_never_leaves_a_part(
    server, adapter, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
  hub.push(adapter, "me/sst2", endpoint=server.url)
  server.cut_off = "adapter_model.safetensors"
  status, said = run(capsys, "pull", "--repo", "me/sst2", "--path",
                     tmp_path / "new", "--endpoint", server.url)
  assert status == 2 and "me/sst2" in said
  assert {p.name for p in tmp_path.iterdir()} == {"adapter"}


@pytest.mark.parametrize("name, content, expected", [
    ("adapter_model.safetensors", b"\xff" * 64, "damaged or truncated"),
    ("adapter_config.json", b"[]", "not a JSON object"),
    ("adapter_config.json", b"{", "damaged or truncated")],
    ids=["weights", "list", "cut"])
def test_damaged_files_stop_on_both_ways(
    server, adapter, tmp_path, name, content, expected):
  hub.push(adapter, "me/sst2", endpoint=server.url)
  server.repositories["me/sst2"].commit("main", {name: content})
  with pytest.raises(ValueError, match=expected):
    hub.pull("me/sst2", tmp_path / "new", endpoint=server.url)
  assert not (tmp_path / "new").exists()
  (adapter / name).write_bytes(content)
  sent = len(server.repositories["me/sst2"].commits)
  with pytest.raises(ValueError, match=expected):
    hub.push(adapter, "me/sst2", endpoint=server.url)
  assert len(server.repositories["me/sst2"].commits) == sent


def test_pickles_code_and_strange_names_stay_there(
    server, prompt, tmp_path):
  hub.push(prompt, "me/prompt", endpoint=server.url)
  server.listing = [
      "prompt.npy", "prompt.json", "run.py", "weights.bin", "other.json",
      "../outside.npy", "/etc/prompt.npy", "..\\outside.npy", ".hidden.npy",
      "checkpoints/prompt.npy"]
  files = hub.pull("me/prompt", tmp_path / "new", endpoint=server.url)
  assert [os.path.basename(f) for f in files] == ["prompt.json", "prompt.npy"]
  fetched = {path.rsplit("/", 1)[1] for method, path in server.requests
             if method == "GET" and "/resolve/" in path}
  assert fetched == {"prompt.json", "prompt.npy"}


def test_adapter_in_a_pickle(server, adapter, tmp_path):
  hub.push(adapter, "me/sst2", endpoint=server.url)
  server.listing = ["adapter_config.json", "adapter_model.bin"]
  with pytest.raises(ValueError, match="adapter_model.bin, a pickle"):
    hub.pull("me/sst2", tmp_path / "new", endpoint=server.url)
  server.listing = ["model.safetensors", "config.json"]
  with pytest.raises(ValueError, match="neither prompts .* nor a PEFT"):
    hub.pull("me/sst2", tmp_path / "new", endpoint=server.url)


def test_pull_keeps_what_is_in_the_folder(server, prompt, tmp_path):
  hub.push(prompt, "me/prompt", endpoint=server.url)
  with pytest.raises(ValueError, match="not an empty folder"):
    hub.pull("me/prompt", prompt.parent, endpoint=server.url)
  (tmp_path / "empty").mkdir()
  assert hub.pull("me/prompt", tmp_path / "empty", endpoint=server.url)
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="file/new"):
    hub.pull("me/prompt", tmp_path / "file" / "new", endpoint=server.url)


def test_nothing_to_push(server, tmp_path):
  for path, expected in ((tmp_path, "neither prompts"),
                         (tmp_path / "absent", "There is no")):
    with pytest.raises(ValueError, match=expected):
      hub.push(path, "me/prompt", endpoint=server.url)
  assert not server.requests


def test_no_token(server, prompt, monkeypatch, tmp_path, capsys):
  from huggingface_hub import constants

  monkeypatch.delenv("HF_TOKEN")
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
  status, said = run(capsys, "push", "--repo", "me/prompt", "--path", prompt,
                     "--endpoint", server.url)
  assert status == 2 and "hf auth login" in said and "HF_TOKEN" in said


def test_no_connection(prompt, tmp_path, capsys):
  pytest.importorskip("huggingface_hub")
  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
    endpoint = f"http://127.0.0.1:{closed.server_port}"
  for command, path in (("push", prompt), ("pull", tmp_path / "new")):
    status, said = run(capsys, command, "--repo", "me/prompt", "--path", path,
                       "--endpoint", endpoint)
    assert status == 2 and endpoint in said and "connection" in said
  status, said = run(capsys, "pull", "--repo", "me/prompt", "--path",
                     tmp_path / "new", "--endpoint", "hub.example")
  assert status == 2 and "not a URL" in said
