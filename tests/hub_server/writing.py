"""The routes that publishing needs: a new repository, LFS contents whole or in parts, the commit, the check of the card."""

import base64
import json
import re

from .card import faults_of
from .contents import ATTRIBUTES, git_oid, is_large, sha256

PREUPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)")
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
COMMIT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)")
CONTENT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+|complete|verify))?")


class Writing:
    def write(self):  # noqa: PLR0911
        if self.path_only == "/api/validate-yaml":
            return self._validate(json.loads(self.body)["content"])
        if match := CONTENT.fullmatch(self.path_only):  # a signed address: nobody's name is asked
            return self._content(match["oid"], match["part"])
        user = self.server.user_of(self.headers.get("Authorization"))
        if user is None:
            return self.error(401, "", message="Invalid credentials in Authorization header")
        if self.path_only == "/api/repos/create":
            return self._create(user, json.loads(self.body))
        routes = ((PREUPLOAD, self._preupload), (BATCH, self._batch), (COMMIT, self._commit))
        for pattern, route in routes:
            if match := pattern.fullmatch(self.path_only):
                if match["repo"] not in self.server.repos:
                    return self.error(404, "RepoNotFound")
                if match["repo"].partition("/")[0] != user and "create_pr" not in self.query and pattern is not BATCH:
                    return self.error(403, "", message="You don't have the rights to write there")
                return route(**match.groupdict())
        return self.error(404, "")

    def _create(self, user, asked):
        owner, name = asked.get("organization") or user, asked["name"]
        repo = f"{owner}/{name}"
        if owner != user:
            return self.error(403, "", message=f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo in self.server.repos:
            return self.error(409, "", message="You already created this model repo")
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(repo)
        self.server.commit(repo, {".gitattributes": ATTRIBUTES}, title="initial commit")
        return self.json({"url": f"{self.server.url}/{repo}", "name": repo})

    def _preupload(self, repo, revision):
        if revision not in self.server.branches[repo]:
            return self.error(404, "RevisionNotFound")
        there = self.server.files(repo, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            name, content = file["path"], there.get(file["path"])
            oid = None if content is None else sha256(content) if is_large(name) else git_oid(content)
            answers.append({"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False, "oid": oid})
        return self.json({"files": answers})

    def _batch(self, repo):
        """Where to put each content; nothing for one that is known."""
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size, href = asked["oid"], asked["size"], f"{self.server.url}/lfs/{asked['oid']}"
            upload = {"href": href, "header": {}}
            if self.server.part_size and size > self.server.part_size:
                count = -(-size // self.server.part_size)
                header = {"chunk_size": str(self.server.part_size)} | {f"{n + 1:05}": f"{href}/{n + 1}" for n in range(count)}
                upload = {"href": f"{href}/complete", "header": header}
            actions = {"upload": upload, "verify": {"href": f"{href}/verify", "header": {}}}
            objects.append({"oid": oid, "size": size} | ({} if oid in self.server.large else {"actions": actions}))
        return self.json({"transfer": "basic", "objects": objects})

    def _content(self, oid, part):
        if part == "verify":
            size = json.loads(self.body)["size"]
            ok = len(self.server.large.get(oid, b"")) == size
            return self.json({}) if ok else self.error(404, "", message="not uploaded")
        if part and part != "complete":
            self.server.parts.setdefault(oid, {})[int(part)] = self.body
            self.send_response(200)
            self.send_header("ETag", f'"{git_oid(self.body)}"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = b"".join(c for _, c in sorted(self.server.parts.pop(oid, {}).items())) if part else self.body
        if sha256(content) != oid:
            return self.error(400, "", message="BadDigest: the content is not that of the name")
        self.server.large[oid] = content
        return self.json({})

    def _commit(self, repo, revision):
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        with self.server.lock:
            before = self.server.head(repo, revision)
            if before is None:
                return self.error(404, "RevisionNotFound")
            pull = self.query.get("create_pr") == "1"
            if not pull and head.get("parentCommit", before) != before:
                return self.error(412, "", message="A commit has happened since. Please refresh and try again.")
            files = dict(self.server.repos[repo][head.get("parentCommit", before)])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    if is_large(value["path"]):
                        return self.error(400, "", message="a large file must come through LFS")
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.server.large:
                        return self.error(400, "", message=f"LFS pointer to a content that was never uploaded: {value['path']}")
                    files[value["path"]] = self.server.large[value["oid"]]
            if faults_of(files.get("README.md", b"").decode()):
                return self.error(400, "", message="the card's header does not hold")
            branch = f"refs/pr/{len(self.server.pulls) + 1}" if pull else revision
            commit = self.server.commit(repo, files, branch, head["summary"])
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"}
        if pull:
            number = branch.rpartition("/")[2]
            self.server.pulls[number] = (repo, commit)
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{number}"
        return self.json(answer)

    def _validate(self, content):
        found = faults_of(content)
        return self.json({"errors": [{"message": text} for text in found], "warnings": []}, 400 if found else 200)
