"""How a process is shut in: Debian's bubblewrap, what it shows of the machine, and the system calls that it takes away. Linux only."""

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from gopd_merge.errors import InputError

SITE = "/site"  # where numpy lies inside
INSIDE = "/inside"
RUNNER = f"{INSIDE}/inside.pyc"
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
DEVICES = ("--perms", "0755", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom")
PATIENCE = 30  # seconds for the probe
PROBE = (  # the namespaces of a program, and its rights
    f"import os, sys; sys.path.append('{INSIDE}'); import zygote\n"
    "zygote.empty_folder('/tmp', 1 << 20); zygote.drop_rights(65534 if os.getuid() == 0 else 0, b''); print(1)"
)
REMEDY = (
    "install it (sudo apt-get install bubblewrap) on a machine that lets it make namespaces, or, "
    "only in a container that holds nothing of value, add --unsafe-exec"
)

# What no benchmark needs and what gets round the other limits: sockets (some families know no network namespace), namespaces and mounts,
# memory that is not in the address space, memory and descriptors of other processes, keys, and parts of the kernel with a long history of
# holes.
DENIED = {
    "x86_64": (0xC000003E, 56, 435, (41, 101, 272, 308, 165, 166, 155, 250, 248, 249, 321, 298, 323, 425, 426, 427, 310, 311, 29, 68, 64,
                                     319, 447, 304, 240, 438)),
    "aarch64": (0xC00000B7, 220, 435, (198, 117, 97, 268, 40, 39, 41, 219, 217, 218, 280, 241, 282, 425, 426, 427, 270, 271, 194, 186, 190,
                                       279, 447, 265, 180, 438)),
}  # fmt: skip
NAMESPACE_FLAGS = 0x7E020080


def seccomp_filter(machine: str) -> bytes | None:
    """A classic BPF program that refuses those system calls with EPERM; None for a processor whose numbers are not known here."""
    if machine not in DENIED:
        return None
    architecture, clone, clone3, denied = DENIED[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, eperm, enosys, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), (give, 0, 0, eperm)]  # the x32 numbers
    for number in denied:
        lines += [(equal, 0, 1, number), (give, 0, 0, eperm)]
    lines += [(equal, 0, 1, clone3), (give, 0, 0, enosys)]  # its flags lie in memory; libraries then use clone
    lines += [(equal, 1, 0, clone), (give, 0, 0, allow), (load, 0, 0, 16), (any_bit, 0, 1, NAMESPACE_FLAGS), (give, 0, 0, eperm)]
    lines += [(give, 0, 0, allow)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def bubblewrap(folder: Path, tmp_bytes: int | None) -> list[str]:
    """The command before the command: every namespace, no environment, and of the file system the interpreter, numpy and a small /tmp.

    A user who is not root gets a user namespace, in which he is nobody. Root gets none, because root in one counts as root for the limit on
    processes; the program inside changes to an unprivileged user itself, and loses the capabilities that this takes.
    Without `tmp_bytes` nothing can be written, and the process may make namespaces for others, each with a /tmp of its own (`zygote.py`).
    """
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if tmp_bytes is None:
        command += ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_KILL"]
    if os.geteuid() == 0:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    for name, value in (("PATH", "/usr/bin"), ("LANG", "C.UTF-8"), ("OPENBLAS_NUM_THREADS", "1")):
        command += ["--setenv", name, value]
    command += [*_shown(), "--ro-bind", str(folder), INSIDE, *DEVICES, "--perms", "1777"]
    command += ["--dir", "/tmp"] if tmp_bytes is None else ["--size", str(tmp_bytes), "--tmpfs", "/tmp"]  # noqa: S108 - its own
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108


@cache
def _shown() -> tuple[str, ...]:
    """Read-only mounts: the system's libraries, this interpreter with its standard library, and numpy. Nothing else of anybody's home."""
    links = {folder: os.readlink(folder) for folder in SYSTEM if os.path.islink(folder)}
    library = Path(sysconfig.get_path("stdlib"))
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib") / (sysconfig.get_config_var("INSTSONAME") or "")
    own = [Path(interpreter()), library, *([shared] if shared.suffix != ".a" and shared.is_file() else [])]
    shown = {path: path for path in SYSTEM if os.path.exists(path) and path not in links}
    shown |= {str(path): str(path) for path in own if not path.is_relative_to("/usr/lib")}
    if site := site_packages():
        shown |= {f"{SITE}/{name}": str(site / name) for name in ("numpy", "numpy.libs") if (site / name).is_dir()}
    mounts: list[str] = []
    for parent in sorted({str(parent) for path in shown for parent in Path(path).parents[:-1]}):
        mounts += ["--perms", "0755", "--dir", parent]  # empty but for what is mounted in it, and open to whoever the program runs as
    for path, source in shown.items():
        mounts += ["--ro-bind", source, path]
    for path, target in links.items():
        mounts += ["--symlink", target, path]
    if (packages := library / "site-packages").is_dir() and str(library) in shown:
        mounts += ["--tmpfs", str(packages), "--remount-ro", str(packages)]  # others' packages
    return tuple(mounts)


@cache
def interpreter() -> str:
    """The file of this Python itself, not of a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


@cache
def site_packages() -> Path | None:
    """The folder that numpy is in."""
    found = importlib.util.find_spec("numpy")
    return Path(found.origin).parent.parent if found and found.origin else None


def isolated_python(file: str) -> list[str]:
    """An interpreter that reads no environment variable, no site and nobody's own packages, running a file."""
    return [interpreter(), "-E", "-s", "-S", "-B", file]


@cache
def check_isolation() -> str:
    """What was found, such as "bubblewrap 0.8.0", after something has run in it.

    Raises InputError, one line, where bubblewrap is missing or cannot make the namespaces.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise InputError(f"a model's code runs only in a sandbox, and bubblewrap (bwrap) was not found; {REMEDY}")
    command = [*bubblewrap(Path(__file__).parent, None), *isolated_python("-c"), PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={}, check=False, timeout=PATIENCE)  # noqa: S603 - ours
        found = done.stderr.strip().split("\n")[-1] or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"a model's code runs only in a sandbox, and bubblewrap did not start ({error}); {REMEDY}") from None
    if done.returncode or done.stdout != "1\n":
        raise InputError(f"a model's code runs only in a sandbox, and bubblewrap cannot make one here ({found}); {REMEDY}")
    return subprocess.run([path, "--version"], capture_output=True, text=True, env={}, check=False).stdout.strip()  # noqa: S603 - found above


def machine_filter() -> bytes | None:
    """The filter of this processor."""
    return seccomp_filter(platform.machine())
