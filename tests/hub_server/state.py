"""What the server holds, and how it is made to fail."""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from .handler import Handler


@dataclass
class Fault:
    """What happens to requests of which `METHOD /path` holds `match`, as many times as `times`.

    `status` answers at once; `cut` closes the connection after so many bytes of the request's body; `delay` reads it slowly, so
    many seconds a chunk; `lost` does what is asked and then answers 500; `before` is called first.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    lost: bool = False
    before: object = None


class HubServer(ThreadingHTTPServer):
    """`repos[repo][commit][path]` is the content of a file; `main` is the last commit that was added.

    `cut` closes the connection in the middle of files of that name, as many times as its value; `delay` waits between two halves.
    Whoever has a token of `users` may write where the name is that user's; what a token is worth is never asked of those who only read.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.cut, self.delay, self.requests = {}, set(), {}, 0.0, []
        self.bytes_sent = 0
        self.users = {"hf_you": "you", "hf_them": "them"}
        self.branches, self.titles, self.private, self.pulls = {}, {}, set(), {}  # branches[repo][name], titles[commit]
        self.large, self.parts, self.part_size = {}, {}, None  # LFS contents by sha256; what of one has arrived, in parts
        self.faults, self.lock = [], threading.RLock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo, folder, names=None):
        """Commit a folder; returns the hash."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.commit(repo, {name: content for name, content in files.items() if names is None or name in names})

    def commit(self, repo, files, branch="main", title="Upload"):
        """A commit that holds exactly these files, on top of the branch; returns the hash."""
        with self.lock:
            before = self.branches.setdefault(repo, {}).get(branch, "")
            commit = hashlib.sha1(repr((before, sorted(files.items()))).encode()).hexdigest()
            self.repos.setdefault(repo, {})[commit] = files
            self.branches[repo][branch] = commit
            self.titles.setdefault(repo, []).append((commit, branch, title))
            return commit

    def head(self, repo, branch="main"):
        return self.branches[repo].get(branch)

    def files(self, repo, branch="main"):
        """Names and contents at the head of a branch."""
        return self.repos[repo][self.head(repo, branch)]

    def fail(self, match, **how):
        fault = Fault(match, **how)
        self.faults.append(fault)
        return fault

    def fault_for(self, request):
        """The first fault that is meant for a request and not used up."""
        with self.lock:
            for fault in self.faults:
                if fault.match in request and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def user_of(self, authorization):
        return self.users.get((authorization or "").removeprefix("Bearer "))
