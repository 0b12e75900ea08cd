from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hpff import data
from hpff.data import Dataset, ImageSet


def with_train(dataset: Dataset, images: torch.Tensor, labels: torch.Tensor) -> Dataset:
    return dataclasses.replace(dataset, train=ImageSet(images, labels))


def differences(one: Dataset, other: Dataset) -> list[str]:
    return data.data_differences(data.fingerprint(one), data.fingerprint(other))


def test_each_part_counts() -> None:
    digits = data.load("digits")
    assert isinstance(digits.train, ImageSet)
    images, labels = digits.train.images, digits.train.labels
    assert differences(digits, data.load("digits")) == []
    cut = with_train(digits, images[:-1], labels[:-1])
    assert differences(digits, cut) == ["train images (1437, now 1436)"]
    other = labels.clone()
    other[700] += 1
    assert differences(digits, with_train(digits, images, other)) == ["train labels"]
    for place in (0, -1):
        other = images.clone()
        other[place, 0, 3, 3] ^= 1
        changed = with_train(digits, other, labels)
        assert differences(digits, changed) == ["train images themselves"]
    names = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
    assert differences(digits, names) == [
        "classes (0, 1, 2, 3, 4 and 5 more, now a, b, c, d, e and 5 more)"
    ]


def test_a_damaged_record_is_a_difference() -> None:
    found = data.fingerprint(data.load("digits"))
    for old in ({}, {**found, "train": 3}, {**found, "classes": None}):
        assert data.data_differences(old, found)


def test_whole_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert data.absolute_name("digits") == "digits"
    assert data.absolute_name("folder:a/b") == f"folder:{tmp_path}/a/b"
    assert data.absolute_name("parquet:~/c") == "parquet:/home/me/c"
    assert data.absolute_name("parquet:~nobody-here/c") == f"parquet:{tmp_path}/~nobody-here/c"
