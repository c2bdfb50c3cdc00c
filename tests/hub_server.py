"""A Hub on loopback: the routes that downloading models and data sets needs, and the ways in which downloading goes wrong."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/(?P<kind>revision|tree)/(?P<revision>[^/]+)(/(?P<path>.+))?")
FILE = re.compile(r"(/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class HubServer(ThreadingHTTPServer):
    """`repos[repo][commit][path]` is the content of a file; `main` is the last commit that was added.

    `cut` closes the connection in the middle of files of that name, as many times as its value; `delay` waits between two halves.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.cut, self.delay, self.requests = {}, set(), {}, 0.0, []
        self.bytes_sent = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo, folder, names=None):
        """Commit a folder; returns the hash."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        files = {name: content for name, content in files.items() if names is None or name in names}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        return commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve(body=False)

    def do_GET(self):
        self._serve(body=True)

    def _serve(self, body):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        match = API.fullmatch(path) or FILE.fullmatch(path)
        if not match or match["repo"] not in self.server.repos:
            return self._error(401 if match else 404, "RepoNotFound")
        commits = self.server.repos[match["repo"]]
        if match["repo"] in self.server.gated:
            return self._error(403, "GatedRepo")
        commit = match["revision"] if match["revision"] != "main" else list(commits)[-1]
        if commit not in commits:
            return self._error(404, "RevisionNotFound")
        files = commits[commit]
        if match.re is FILE:
            return self._file(files.get(match["path"]), commit, match["path"], body)
        if match["kind"] == "revision":
            return self._json({"id": match["repo"], "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        return self._tree(files, match["path"], recursive="recursive=true" in urlsplit(self.path).query.lower())

    def _tree(self, files, folder, recursive):
        """What a folder holds: files, and folders where these are not gone into."""
        start = f"{folder}/" if folder else ""
        entries = {}
        for name, content in files.items():
            if not name.startswith(start):
                continue
            inner, _, deeper = name.removeprefix(start).partition("/")
            if deeper and not recursive:
                entries[inner] = {"type": "directory", "path": start + inner, "size": 0, "oid": hashlib.sha1(inner.encode()).hexdigest()}
            else:
                entries[name] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        return self._json(list(entries.values())) if entries else self._error(404, "EntryNotFound")

    def _json(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, content, commit, name, body):
        if content is None:
            return self._error(404, "EntryNotFound")
        first, last = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        start, content = int(first), content[: int(last) + 1] if last else content
        self.server.bytes_sent += (len(content) - start) * body
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return None
        middle = (start + len(content)) // 2
        self.wfile.write(content[start:middle])
        self.wfile.flush()
        time.sleep(self.server.delay)
        if self.server.cut.get(name, 0) > 0:
            self.server.cut[name] -= 1
            self.close_connection = True
            self.connection.close()
            return None
        return self.wfile.write(content[middle:])
