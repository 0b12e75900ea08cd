"""What tells a data set from another: sizes, format, class names, labels, a sample of images."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpff.data.dataset import Dataset, Split
from hpff.data.decode import BrokenImageError
from hpff.data.encoded_set import EncodedSet
from hpff.data.image_set import ImageSet
from hpff.data.pairs import PairSet

_SAMPLE = 256


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Plain data that are the same for the same data set, wherever it lies.

    All labels count, and of each split's images a sample of up to 256, evenly spread.
    """
    return {
        "classes": list(dataset.class_names),
        "train": _split(dataset.train),
        "test": _split(dataset.test),
    }


def data_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One text for each part of two fingerprints that differs: `train images (128, now 120)`."""
    found = []
    if old.get("classes") != new["classes"]:
        found.append(f"classes ({_listed(old.get('classes'))}, now {_listed(new['classes'])})")
    for split in ("train", "test"):
        before, now = old.get(split), new[split]
        before = before if isinstance(before, Mapping) else {}
        for key, words in (("images", "images"), ("format", "format of images")):
            if before.get(key) != now[key]:
                found.append(f"{split} {words} ({before.get(key)}, now {now[key]})")
        for key in ("labels", "sample"):
            if before.get(key) != now[key] and before.get("images") == now["images"]:
                found.append(f"{split} {'labels' if key == 'labels' else 'images themselves'}")
    return found


def absolute_name(name: str) -> str:
    """`parquet:PATH` with the whole path, which stays true when the working folder changes."""
    kind, _, path = name.partition(":")
    if not path:
        return name
    whole = Path(path)
    with contextlib.suppress(RuntimeError):  # `~somebody` who is unknown here.
        whole = whole.expanduser()
    return f"{kind}:{whole.absolute()}"


def _split(images: Split) -> dict[str, Any]:
    return {
        "images": len(images),
        "format": _format(images),
        "labels": _labels(images),
        "sample": _sample(images),
    }


def _labels(images: Split) -> str:
    """Of label maps how they are read; what they hold is in the sample."""
    if isinstance(images, PairSet):
        return hashlib.sha256(repr(images.maps).encode()).hexdigest()
    return hashlib.sha256(images.labels.cpu().numpy().tobytes()).hexdigest()


def _format(images: Split) -> str:
    if isinstance(images, PairSet):
        return "encoded pairs"
    if isinstance(images, EncodedSet):
        return "encoded"
    return "x".join(map(str, images.shape))


def _sample(images: Split) -> str:
    digest = hashlib.sha256()
    count = min(_SAMPLE, len(images))
    for index in torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long().tolist():
        content = _bytes(images, index)
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _bytes(images: Split, index: int) -> bytes:
    if isinstance(images, ImageSet):
        return images.images[index].cpu().numpy().tobytes()
    try:
        found = images.read(index)
        return b"".join(found) if isinstance(found, tuple) else found
    except BrokenImageError:
        return b""  # Training will say so, or leave it out.


def _listed(names: object) -> str:
    texts = [str(name) for name in names] if isinstance(names, list) else ["none known"]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
