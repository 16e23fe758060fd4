"""Write and check the digest line at the end of a file: the SHA-256 of all bytes before it.

HDF5 and netCDF libraries ignore bytes after the end of file that the header states, so they can open such a file.
"""

import hashlib

_MAGIC = b"\nrepsim-digest 1 sha256 "
SIZE = len(_MAGIC) + 64 + 1 + 20 + 1
"""Bytes of a digest line: the mark, the digest in hexadecimal, a space, the number of bytes before it, a newline."""


def digest_line(data: bytes | bytearray | memoryview) -> bytes:
    r"""Return the digest line of a file with the bytes ``data``; it is appended to them.

    >>> digest_line(b"abc").decode()
    '\nrepsim-digest 1 sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad 00000000000000000003\n'
    """
    return b"%s%s %020d\n" % (_MAGIC, hashlib.sha256(data).hexdigest().encode(), len(data))


def has_digest(data: bytes | bytearray | memoryview) -> bool:
    """Return whether bytes end in a digest line, which may be wrong."""
    return bytes(data[-SIZE:]).startswith(_MAGIC)


def digest_matches(data: bytes | bytearray | memoryview) -> bool:
    """Return whether bytes end in a digest line that matches the bytes before it.

    >>> digest_matches(b"abc" + digest_line(b"abc")), digest_matches(b"abd" + digest_line(b"abc")), digest_matches(b"")
    (True, False, False)
    """
    view = memoryview(data)
    return has_digest(view) and bytes(view[-SIZE:]) == digest_line(view[:-SIZE])
