"""The routes that downloading models and data sets needs."""

import re
import time

from .contents import git_oid, is_large, sha256

REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
API = re.compile(rf"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/(?P<kind>revision|tree|commits)/{REVISION}(/(?P<path>.+))?")
INFO = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)")
FILE = re.compile(rf"(/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)")


class Reading:
    def read(self):  # noqa: PLR0911
        match = API.fullmatch(self.path_only) or FILE.fullmatch(self.path_only) or INFO.fullmatch(self.path_only)
        repo = match["repo"] if match else None
        hidden = repo in self.server.private and self.server.user_of(self.headers.get("Authorization")) != repo.partition("/")[0]
        if not match or repo not in self.server.repos or hidden:
            return self.error(401 if match else 404, "RepoNotFound")
        if repo in self.server.gated:
            return self.error(403, "GatedRepo")
        revision = match["revision"] if match.re is not INFO else "main"
        commit = self.server.branches[repo].get(revision, revision)
        if commit not in self.server.repos[repo]:
            return self.error(404, "RevisionNotFound")
        files = self.server.repos[repo][commit]
        if match.re is FILE:
            return self._file(files.get(match["path"]), commit, match["path"], self.command == "GET")
        if match.re is INFO or match["kind"] == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.json({"id": repo, "sha": commit, "private": repo in self.server.private, "siblings": siblings})
        if match["kind"] == "commits":
            return self._commits(repo, revision)
        return self._tree(files, match["path"], recursive=self.query.get("recursive", "").lower() == "true")

    def _commits(self, repo, branch):
        found = [
            {"id": commit, "title": title, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            for commit, on, title in reversed(self.server.titles[repo])
            if on == branch
        ]
        return self.json(found)

    def _tree(self, files, folder, recursive):
        """What a folder holds: files, and folders where these are not gone into."""
        start = f"{folder}/" if folder else ""
        entries = {}
        for name, content in files.items():
            if not name.startswith(start):
                continue
            inner, _, deeper = name.removeprefix(start).partition("/")
            if deeper and not recursive:
                entries[inner] = {"type": "directory", "path": start + inner, "size": 0, "oid": git_oid(inner.encode())}
            else:
                entries[name] = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
                if is_large(name):
                    entries[name]["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        return self.json(list(entries.values())) if entries else self.error(404, "EntryNotFound")

    def _file(self, content, commit, name, body):
        if content is None:
            return self.error(404, "EntryNotFound")
        first, last = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        oid = sha256(content) if is_large(name) else git_oid(content)
        start, content = int(first), content[: int(last) + 1] if last else content
        self.server.bytes_sent += (len(content) - start) * body
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{oid}"')
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
