"""A Hugging Face Hub in memory: the HTTP API that huggingface_hub uses for repositories of models, datasets and spaces.

It stands in for the real Hub, which tests cannot reach. It keeps commits, branches and LFS objects, checks tokens,
answers downloads of large files with a redirect to another host as the Hub does, and fails on request. It does not
speak Xet: clients need HF_HUB_DISABLE_XET=1, with which they use LFS.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_of_alice"
USER = "alice"
REGULAR_BYTES = 10 << 20  # larger files are LFS files, as are files that are not text
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing a connection resets it


class Repository:
    """One repository.

    Attributes:
        kind: "model", "dataset" or "space".
        commits: by SHA, the files of the commit: path → content of a regular file (bytes), or SHA-256 of an LFS file.
        branches: name → SHA.
        history: SHA and message of every commit, oldest first.
    """

    def __init__(self, kind, name, private):
        self.kind, self.name, self.private = kind, name, private
        self.commits, self.branches, self.history = {}, {}, []
        self.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )

    def commit(self, branch, files, message):
        """Make `files` the content of a branch; return the SHA."""
        sha = hashlib.sha1(f"{self.kind} {self.name} {len(self.history)} {message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.history.append((sha, message))
        return sha

    def sha(self, revision):
        """Return the SHA of a branch or a SHA, or None."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class HubServer:
    """The server. `url` is its address for HF_ENDPOINT.

    Attributes:
        repositories: by kind and name, such as `("dataset", "alice/store")`.
        objects: contents of LFS files by SHA-256.
        tokens: token → user.
        log: method and path (without query) of every request that was answered without a fault.
        fault: called with every request; returns whether it has dealt with it. See the methods of `Request`.
        page: entries per page of a listing.
    """

    def __init__(self):
        self.repositories, self.objects, self.log = {}, {}, []
        self.tokens = {TOKEN: USER}
        self.fault = lambda request: False
        self.page = 100
        self.lock = threading.RLock()
        self._servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Request, CdnRequest)]
        for server in self._servers:
            server.hub, server.daemon_threads, server.block_on_close = self, True, False
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    @contextlib.contextmanager
    def serve(self):
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for server, thread in zip(self._servers, threads, strict=True):
                server.shutdown()
                thread.join()
                server.server_close()

    def files(self, kind, name, revision="main"):
        """Return the files of a revision: path → content."""
        repository = self.repositories[kind, name]
        return {path: self.content(blob) for path, blob in repository.commits[repository.sha(revision)].items()}

    def content(self, blob):
        return blob if isinstance(blob, bytes) else self.objects[blob]

    def fail_times(self, count, pattern, act):
        """Let the first `count` requests whose "METHOD /path" matches `pattern` be dealt with by `act(request)`."""
        left = [count]

        def fault(request):
            with self.lock:
                if not left[0] or not re.search(pattern, f"{request.command} {request.route}"):
                    return False
                left[0] -= 1
            return act(request) or True

        self.fault = fault

    def requests(self, pattern):
        """Return the logged requests that match."""
        return [line for line in (" ".join(entry) for entry in self.log) if re.search(pattern, line)]


class Request(http.server.BaseHTTPRequestHandler):
    """One request to the Hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _handle(self):
        self.hub = self.server.hub
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.raw_route = parts.path
        self.body = self._read_body()
        if self.hub.fault(self):
            return
        self.hub.log.append((self.command, self.route))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.tokens.get(token)
        if token and self.user is None:
            self.answer_json({"error": "Invalid credentials in Authorization header"}, 401)
            return
        with self.hub.lock:
            self._dispatch()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _dispatch(self):
        for pattern, method in _ROUTES:
            found = re.fullmatch(pattern, self.raw_route)
            if found:
                getattr(self, method)(**{name: value and unquote(value) for name, value in found.groupdict().items()})
                return
        self.answer_json({"error": f"no such route: {self.command} {self.route}"}, 404)

    # what faults may do

    def answer(self, status, data=b"", headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return True

    def answer_json(self, value, status=200, headers=None):
        headers = {"Content-Type": "application/json"} | (headers or {})
        if status >= 400:
            headers |= {"X-Error-Message": value["error"]}
        return self.answer(status, json.dumps(value).encode(), headers)

    def refuse(self, status, retry_after=None):
        return self.answer_json(
            {"error": "as requested"}, status, {} if retry_after is None else {"Retry-After": str(retry_after)}
        )

    def cut(self):
        """Reset the connection without an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True
        self.connection.close()
        return True

    # repositories

    def _whoami(self):
        if self.user is None:
            self.answer_json({"error": "Invalid username or password."}, 401)
        else:
            auth = {"accessToken": {"displayName": "test", "role": "write"}}
            self.answer_json({"type": "user", "name": self.user, "id": self.user, "orgs": [], "auth": auth})

    def _create(self):
        if self.user is None:
            self.answer_json({"error": "Invalid username or password."}, 401)
            return
        wanted = json.loads(self.body)
        owner, kind = wanted.get("organization") or self.user, wanted.get("type") or "model"
        name = f"{owner}/{wanted['name']}"
        if owner != self.user:
            self.answer_json({"error": f"You don't have the rights to create a {kind} under {owner}"}, 403)
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        url = f"{self.hub.url}/{_prefix(kind)}{name}"
        if (kind, name) in self.hub.repositories:
            self.answer_json({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.repositories[kind, name] = Repository(kind, name, private)
        self.answer_json({"url": url, "name": name})

    def _repository(self, kinds, name, write=False):
        """Return a repository, or None after answering that it is missing or closed to the user."""
        found = self.hub.repositories.get((kinds.rstrip("s") if kinds else "model", name))
        owned = found is not None and self.user == found.name.split("/")[0]
        if found is None or (found.private and not owned):
            status = 401 if self.user is None else 404
            self.answer_json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not owned:
            self.answer_json({"error": "you have no permission to write"}, 401 if self.user is None else 403)
            return None
        return found

    def _at(self, kinds, name, revision):
        """Return a repository, the SHA of a revision and its files, or Nones after answering."""
        repository = self._repository(kinds, name)
        if repository is None:
            return None, None, None
        sha = repository.sha(revision or "main")
        if sha is None:
            error = {"error": f"Invalid rev id: {revision}"}
            self.answer_json(error, 404, {"X-Error-Code": "RevisionNotFound"})
            return None, None, None
        return repository, sha, repository.commits[sha]

    def _info(self, kinds, name, revision=None):
        repository, sha, files = self._at(kinds, name, revision)
        if repository is not None:
            siblings = [{"rfilename": path} for path in sorted(files)]
            about = {"_id": name, "id": name, "author": name.split("/")[0], "private": repository.private}
            usual = {"downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
            self.answer_json(about | usual | {"sha": sha, "siblings": siblings})

    def _refs(self, kinds, name):
        repository = self._repository(kinds, name)
        if repository is not None:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
                for branch, sha in repository.branches.items()
            ]
            self.answer_json({"branches": branches, "tags": [], "converts": []})

    def _branch(self, kinds, name, branch):
        repository = self._repository(kinds, name, write=True)
        if repository is None:
            return
        if branch in repository.branches:
            self.answer_json({"error": "Reference already exists"}, 409)
            return
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = repository.sha(start)
        self.answer_json({})

    def _tree(self, kinds, name, revision, path=None):
        repository, _, files = self._at(kinds, name, revision)
        if repository is None:
            return
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = _entries(self.hub, files, path.strip("/") if path else "", recursive)
        if entries is None:
            self.answer_json({"error": f"{path} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        first = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if first + self.hub.page < len(entries):
            kept = {key: values[0] for key, values in self.query.items()} | {"cursor": first + self.hub.page}
            query = "&".join(f"{key}={value}" for key, value in kept.items())
            more = {"Link": f'<{self.hub.url}{self.raw_route}?{query}>; rel="next"'}
        self.answer_json(entries[first : first + self.hub.page], headers=more)

    def _paths_info(self, kinds, name, revision):
        repository, _, files = self._at(kinds, name, revision)
        if repository is None:
            return
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode())["paths"]
        self.answer_json([_file_entry(self.hub, path, files[path]) for path in wanted if path in files])

    # uploads

    def _validate_yaml(self):
        text = json.loads(self.body)["content"]
        broken = not text.startswith("---\n")
        self.answer_json(
            {"errors": [{"message": "no header"}] if broken else [], "warnings": []}, 400 if broken else 200
        )

    def _preupload(self, kinds, name, revision):
        repository = self._repository(kinds, name, write=True)
        if repository is None:
            return
        files = repository.commits[repository.sha(revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            lfs = file["size"] > REGULAR_BYTES or b"\0" in base64.b64decode(file["sample"])
            known = files.get(file["path"])
            answers.append(
                {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                | ({} if known is None else {"oid": _git_oid(known) if isinstance(known, bytes) else known})
            )
        self.answer_json({"files": answers})

    def _lfs_batch(self, kinds, name):
        repository = self._repository(kinds, name, write=True)
        if repository is None:
            return
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                place = f"{self.hub.url}/lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            answers.append(answer)
        self.answer_json({"transfer": "basic", "objects": answers})

    def _lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer_json({"error": "the content has another checksum"}, 400)
            return
        self.hub.objects[oid] = self.body
        self.answer(200)

    def _lfs_verify(self, oid):
        wanted = json.loads(self.body)
        fits = len(self.hub.objects.get(oid, b"")) == wanted["size"]
        self.answer_json({} if fits else {"error": "not uploaded"}, 200 if fits else 422)

    def _commit(self, kinds, name, revision):
        repository = self._repository(kinds, name, write=True)
        if repository is None:
            return
        if revision not in repository.branches:
            self.answer_json({"error": f"no branch {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        files, message = dict(repository.commits[repository.branches[revision]]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repository.branches[revision]):
                    self.answer_json({"error": "A commit has happened since. Please refresh and try again."}, 412)
                    return
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self.answer_json({"error": f"{value['path']}: LFS pointer to a file that does not exist"}, 400)
                    return
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        sha = repository.commit(revision, files, message)
        url = f"{self.hub.url}/{_prefix(repository.kind)}{name}/commit/{sha}"
        self.answer_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # downloads

    def _resolve(self, kinds, name, revision, path):
        repository, sha, files = self._at(kinds, name, revision)
        if repository is None:
            return
        if path not in files:
            error = {"error": "Entry not found"}
            self.answer_json(error, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        blob = files[path]
        if isinstance(blob, bytes):
            self.answer_content(blob, {"ETag": f'"{_git_oid(blob)}"', "X-Repo-Commit": sha})
            return
        self.answer(
            302,
            headers={
                "Location": f"{self.hub.cdn}/{blob}?path={quote(path)}",
                "X-Repo-Commit": sha,
                "X-Linked-ETag": f'"{blob}"',
                "X-Linked-Size": str(len(self.hub.objects[blob])),
                "ETag": f'"{blob}"',
            },
        )

    def answer_content(self, data, headers):
        """Answer with a file, or the range of it that was requested."""
        headers = headers | {"Accept-Ranges": "bytes", "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self.answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
            return
        self.answer(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


class CdnRequest(Request):
    """One request to the host of large files, which refuses the Hub's tokens, as signed URLs do."""

    def _dispatch(self):
        if "Authorization" in self.headers:
            self.answer_json({"error": "Only one auth mechanism allowed"}, 400)
            return
        oid = self.raw_route.strip("/")
        self.answer_content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def answer_half(self):
        """Answer with the headers and half of the content, then reset the connection."""
        data = self.hub.objects[self.raw_route.strip("/")]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        return self.cut()


_API = r"/api/(?P<kinds>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_REPO = r"/(?:(?P<kinds>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    (r"/api/whoami-v2", "_whoami"),
    (r"/api/repos/create", "_create"),
    (r"/api/validate-yaml", "_validate_yaml"),
    (_API, "_info"),
    (_API + r"/revision/(?P<revision>[^/]+)", "_info"),
    (_API + r"/refs", "_refs"),
    (_API + r"/branch/(?P<branch>[^/]+)", "_branch"),
    (_API + r"/tree/(?P<revision>[^/]+)(?P<path>/.*)?", "_tree"),
    (_API + r"/paths-info/(?P<revision>[^/]+)", "_paths_info"),
    (_API + r"/preupload/(?P<revision>[^/]+)", "_preupload"),
    (_API + r"/commit/(?P<revision>[^/]+)", "_commit"),
    (_REPO + r"\.git/info/lfs/objects/batch", "_lfs_batch"),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", "_lfs_put"),
    (r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "_lfs_verify"),
    (_REPO + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "_resolve"),
]


def _prefix(kind):
    return "" if kind == "model" else f"{kind}s/"


def _git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _file_entry(hub, path, blob):
    if isinstance(blob, bytes):
        return {"type": "file", "path": path, "size": len(blob), "oid": _git_oid(blob)}
    size = len(hub.objects[blob])
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob}\nsize {size}\n".encode()
    lfs = {"oid": blob, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": size, "oid": _git_oid(pointer), "lfs": lfs}


def _entries(hub, files, folder, recursive):
    """Return the entries of a folder, with those of its subfolders if `recursive`; None if it does not exist."""
    start = f"{folder}/" if folder else ""
    below = {path: blob for path, blob in files.items() if path.startswith(start)}
    if folder and not below:
        return None
    entries, folders = [], set()
    for path, blob in sorted(below.items()):
        names = path[len(start) :].split("/")
        parents = {start + "/".join(names[:depth]) for depth in range(1, len(names))}
        folders |= parents if recursive else set(sorted(parents)[:1])
        if recursive or len(names) == 1:
            entries.append(_file_entry(hub, path, blob))
    entries += [{"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in folders]
    return sorted(entries, key=lambda entry: entry["path"])
