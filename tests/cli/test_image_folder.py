"""Training on an image folder: images of any size from workers, and broken ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Hpff = Callable[..., Any]

SETTINGS = ("subset=null", "batch_size=4", "image_size=8", "workers=0", "model.width=2")


@pytest.fixture
def images(folder: Path) -> Path:
    """Return a folder of 2 classes, 8 training and 4 test images each, of two sizes."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("dark", "light"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                light = 120 * (name == "light")
                size = (10 + 3 * (number % 2), 12, 3)
                pixels = chance.integers(light, light + 120, size, dtype=np.uint8)
                path = folder / "images" / split / name / f"{number}.jpg"
                Image.fromarray(pixels).save(path)
    return folder / "images"


def train(hpff: Hpff, out: str, *more: str) -> Any:
    return hpff("train", "tiny.yaml", "data=folder:images", *SETTINGS, *more, "--out", out)


def test_an_image_folder_is_trained_on(hpff: Hpff, folder: Path, images: Path) -> None:
    answer = train(hpff, "run", "epochs=8")
    assert answer.code == 0, answer.err
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["test_error_percent"] < 30
    assert report["data"]["class_names"] == ["dark", "light"]
    assert report["data"]["image_shape"] == [3, 8, 8]
    assert report["test_top5_error_percent"] is None
    assert report["broken_images"] == 0
    assert not (folder / "run" / "broken_images.txt").exists()


def test_a_broken_image_stops_the_run_and_is_named(hpff: Hpff, folder: Path, images: Path) -> None:
    path = images / "train" / "dark" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    answer = train(hpff, "run")
    assert answer.code == 2
    last = answer.err.splitlines()[-1]
    assert last.startswith(f"hpff: {path}: the image cannot be decoded (")
    assert last.endswith("broken_images=skip")


def test_broken_images_are_skipped_named_and_counted(
    hpff: Hpff, folder: Path, images: Path
) -> None:
    bad = [images / "train" / "dark" / "3.jpg", images / "test" / "light" / "1.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-60])
    answer = train(hpff, "run", "broken_images=skip", "epochs=2")
    assert answer.code == 0, answer.err
    assert "2 broken images were left out (broken_images.txt)" in answer.out
    assert "2 broken images left out" in answer.err
    lines = (folder / "run" / "broken_images.txt").read_text().splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(map(str, bad))
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["broken_images"] == 2
    assert report["test_images"] == 7


def test_a_broken_row_of_parquet_is_skipped_named_and_counted(
    hpff: Hpff, folder: Path, parquet: Path, write_parquet: Callable[..., None]
) -> None:
    import pyarrow.parquet as pq

    file = parquet / "train.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[5]["img"]["bytes"] = rows[5]["img"]["bytes"][:50]
    pq.write_table(table.from_pylist(rows, schema=table.schema), file)
    arguments = ("train", "tiny.yaml", "data=parquet:data", "batch_size=32", "--out", "run")
    stopped = hpff(*arguments)
    assert stopped.code == 2
    assert f"{file}, row 5: the image cannot be decoded (" in stopped.err
    answer = hpff(*arguments, "broken_images=skip")
    assert answer.code == 0, answer.err
    assert (folder / "run" / "broken_images.txt").read_text().startswith(f"{file}, row 5: ")


def test_a_run_resized_in_memory(hpff: Hpff, folder: Path) -> None:
    answer = hpff("train", "tiny.yaml", "image_size=12", "model.width=2", "--out", "run")
    assert answer.code == 0, answer.err
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["data"]["image_shape"] == [1, 12, 12]


def test_metrics_are_a_table_too(hpff: Hpff, folder: Path) -> None:
    hpff("train", "tiny.yaml", "--out", "run")
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        assert float(row["test_error_percent"]) == line["test_error_percent"]
        assert float(row["cascade_losses.2"]) == line["cascade_losses"][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("treatment=svhn", ["treatment: is svhn, but digits has a published one of its own"]),
        ("broken_images=ignore", ["broken_images: is 'ignore', expected stop or skip"]),
        ("image_size=0", ["image_size: is 0"]),
        ("workers=-1", ["workers: is -1"]),
        ("data=folder:gone", ["gone does not exist; expected train/ and test/"]),
        ("data=imagenet", ["imagenet is not in", "image-net.org"]),
    ],
)
def test_wrong_settings_of_data(
    hpff: Hpff, monkeypatch: pytest.MonkeyPatch, folder: Path, change: str, words: list[str]
) -> None:
    monkeypatch.setenv("HPFF_DATA", str(folder))
    answer = hpff("train", "tiny.yaml", change, "--out", "run")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert all(word in answer.err for word in words), answer.err
    assert not (folder / "run").exists()
