from __future__ import annotations

import io
import json

import pytest
import torch

from hpff.runs import digests

CONTENT = {"loss": 0.1, "epochs": 3, "names": ["a", "ü\n"], "more": {"x": None}}


def test_sealed_json_comes_back_and_is_sealed_once() -> None:
    sealed = digests.seal_json(CONTENT)
    assert digests.open_json(digests.json_text(sealed)) == sealed
    assert digests.seal_json(sealed) == sealed
    assert digests.open_json(json.dumps(sealed).encode()) == sealed


def test_any_flipped_bit_of_json_changes_nothing_or_is_noticed() -> None:
    """A blank for a blank may pass; a value may not."""
    sealed = digests.seal_json(CONTENT)
    text = digests.json_text(sealed)
    noticed = 0
    for place in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[place // 8] ^= 1 << place % 8
        try:
            assert digests.open_json(bytes(damaged)) == sealed
        except ValueError:
            noticed += 1
    assert noticed > 7 * len(text)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"3", b'{"loss": 0.1}', b"[" * 99_999])
def test_json_without_a_digest_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        digests.open_json(text)


def test_a_sealed_archive_is_still_an_archive() -> None:
    archive = io.BytesIO()
    torch.save({"a": torch.arange(5)}, archive)
    assert not digests.is_whole_archive(archive.getvalue())
    digests.seal_archive(archive)
    content = archive.getvalue()
    assert digests.is_whole_archive(content)
    assert torch.equal(torch.load(io.BytesIO(content))["a"], torch.arange(5))
    for damaged in (b"", content[:-1], content[1:], content + b" "):
        assert not digests.is_whole_archive(damaged)
