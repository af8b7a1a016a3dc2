"""Words for errors of the system about files, for people: without an error number."""

from __future__ import annotations

import errno

_WORDS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "is a folder; name a file",
    errno.ENOTDIR: "lies in something that isn't a folder",
    errno.EEXIST: "exists, and isn't a folder",
    errno.EACCES: "this user has no right to it",
    errno.EPERM: "this user has no right to it",
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the disk is read-only",
}
"""What a person can do something about, by the number of the system's error."""


def words(error: OSError) -> str:
    """Why a file can't be read or written."""
    return _WORDS.get(error.errno or 0) or error.strerror or type(error).__name__
