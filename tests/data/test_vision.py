"""Data sets from torchvision, from files as their owners write them."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from hpff import data
from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision


@pytest.fixture
def random_bytes() -> np.random.Generator:
    return np.random.default_rng(0)


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_svhn(tmp_path, monkeypatch, random_bytes):
    """Its zeros are labeled 10 in the files; the pixels lie (H, W, C, N)."""
    known = torchvision("datasets").SVHN
    files = {}
    for split in ("train", "test"):
        url, name, _ = known.split_list[split]
        pixels = random_bytes.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
        scipy.io.savemat(tmp_path / name, {"X": pixels, "y": np.array([[10], [1], [9], [2]])})
        files[split] = [url, name, checksum(tmp_path / name)]
    monkeypatch.setattr(known, "split_list", files)
    found = data.load("svhn", root=tmp_path)
    assert found.test.images.shape == (4, 3, 32, 32)
    assert torch.equal(found.test.images[1], torch.from_numpy(pixels[..., 1]).permute(2, 0, 1))
    assert found.test.labels.tolist() == [0, 1, 9, 2]
    assert found.augmentation == data.Augmentation(2, "zeros", flip=False)
    assert found.mean == found.std == (0.5, 0.5, 0.5)


def test_stl10_without_its_unlabeled_images(tmp_path, monkeypatch, random_bytes):
    """Labels count from 1 in the files; pixels lie by column."""
    known = torchvision("datasets").STL10
    home = tmp_path / "stl10_binary"
    home.mkdir()
    pixels = random_bytes.integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    for part in ("train_list", "test_list"):
        files = getattr(known, part)[:2]
        (home / files[0][0]).write_bytes(pixels.tobytes())
        (home / files[1][0]).write_bytes(bytes([1, 10, 4]))
        monkeypatch.setattr(known, part, [[name, checksum(home / name)] for name, _ in files])
    found = data.load("stl10", root=tmp_path)
    assert found.train.labels.tolist() == [0, 9, 3]
    assert torch.equal(found.train.images, torch.from_numpy(pixels).transpose(2, 3))
    assert found.class_names[7] == "monkey"
    assert found.augmentation == data.Augmentation(4, "zeros", flip=True)


def test_cifar100(tmp_path, monkeypatch, random_bytes):
    known = torchvision("datasets").CIFAR100
    home = tmp_path / known.base_folder
    home.mkdir()
    names = [f"class {index}" for index in range(100)]
    rows = random_bytes.integers(0, 256, (2, 3072), dtype=np.uint8)
    contents = {
        "train": {"data": rows, "fine_labels": [3, 99]},
        "test": {"data": rows[:1], "fine_labels": [5]},
        "meta": {"fine_label_names": names},
    }
    for name, content in contents.items():
        (home / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(known, "train_list", [["train", checksum(home / "train")]])
    monkeypatch.setattr(known, "test_list", [["test", checksum(home / "test")]])
    meta = {**known.meta, "md5": checksum(home / "meta")}
    monkeypatch.setattr(known, "meta", meta)
    found = data.load("cifar100", root=tmp_path)
    assert found.train.labels.tolist() == [3, 99]
    assert torch.equal(found.train.images.flatten(1), torch.from_numpy(rows))
    assert found.class_names == tuple(names)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "cifar-10-python.tar.gz (from "),
        ("cifar100", "cifar-100-python.tar.gz (from "),
        ("svhn", "train_32x32.mat and test_32x32.mat (from "),
        ("stl10", "stl10_binary.tar.gz (from "),
    ],
)
def test_a_download_that_fails_says_what_to_fetch_and_where_to_put_it(
    tmp_path, monkeypatch, name, wanted
):
    nobody_listens = "http://127.0.0.1:9"
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, nobody_listens)
    for proxy in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    root = tmp_path / "cache" / "downloads"
    with pytest.raises(UserError) as caught:
        data.load(name, root=root)
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {root} and could not be downloaded (")
    assert f"put {wanted}" in message
    assert "parquet:FOLDER" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_broken_archive_is_no_data_set(tmp_path, monkeypatch):
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="could not be downloaded"):
        data.load("cifar10", root=tmp_path)


def test_the_outlines_are_those_of_what_is_loaded():
    for name, outline in data.PUBLISHED_DATASETS.items():
        found = data.blank(name) if name != "imagenet" else None
        if found is None:
            continue
        assert found.train.shape == outline.shape == found.image_shape()
        assert (len(found.train), len(found.test)) == (outline.train, outline.test)
        assert len(found.class_names) == found.num_classes == outline.num_classes
