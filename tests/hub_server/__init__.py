"""A Hub on loopback: the routes that the library needs to download and to publish, and the ways in which that goes wrong.

It keeps files as the Hub does: small ones as git blobs, *.safetensors behind LFS by their sha256. It has no Xet.
"""

from .state import HubServer

__all__ = ["HubServer"]
