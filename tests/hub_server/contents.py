"""How the Hub names contents, and which files it keeps behind LFS."""

import hashlib

LFS = (".safetensors", ".bin", ".gguf")
ATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS).encode()  # of a new repository


def is_large(name: str) -> bool:
    return name.endswith(LFS)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
