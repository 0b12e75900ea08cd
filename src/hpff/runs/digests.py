"""Digests: how a file that is read back is told from a damaged one before it is used.

JSON of ours holds the SHA-256 of all else in it, a checkpoint has its own in the archive's comment,
and the report of a finished run, which is written last, holds those of the files beside it. So a
file and its digest always take effect together, whenever a process is killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from typing import Any

_KEY = "sha256"
_PREFIX = b"sha256:"
_COMMENT = len(_PREFIX) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.Struct("<H")  # An archive ends in the length of its comment and the comment.


def sha256(content: bytes | memoryview) -> str:
    """The digest as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def seal_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with their digest as a last key, as `json_text` writes and `open_json` checks."""
    plain = json.loads(json.dumps({key: content[key] for key in content if key != _KEY}))
    return {**plain, _KEY: _json_digest(plain)}


def json_text(content: Mapping[str, Any]) -> bytes:
    """Plain data as a file for people, too."""
    return (json.dumps(content, indent=2) + "\n").encode()


def open_json(text: bytes) -> dict[str, Any]:
    """What `seal_json` gave, digest and all.

    Raises:
        ValueError: it is damaged, or another's.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    plain = {key: value for key, value in content.items() if key != _KEY}
    if content.get(_KEY) != _json_digest(plain):
        raise ValueError("its digest is another")
    return content


def seal_archive(archive: io.BytesIO) -> None:
    """Put a zip archive's digest into its comment, which readers of archives pass over."""
    end = archive.seek(-_LENGTH.size, io.SEEK_END)
    with archive.getbuffer() as content:
        digest = sha256(content[:end])
    archive.write(_LENGTH.pack(_COMMENT) + _PREFIX + digest.encode())


def is_whole_archive(content: bytes) -> bool:
    """Whether the archive is as `seal_archive` left it."""
    end = max(0, len(content) - _COMMENT - _LENGTH.size)
    digest = sha256(memoryview(content)[:end])
    return content[end:] == _LENGTH.pack(_COMMENT) + _PREFIX + digest.encode()


def _json_digest(plain: Mapping[str, Any]) -> str:
    return sha256(json.dumps(plain, sort_keys=True).encode())
