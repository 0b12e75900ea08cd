"""`--resume` goes on with the data that the run had, or says which others it met."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.test_wrong_inputs import refused
from PIL import Image

from hpff.training import setup

Hpff = Callable[..., Any]
SCALE = ("batch_size=20", "subset=null", "method=bp", "cascade=1", "patches=1")
LABELS = [*range(10)] * 4


def write_images(folder: Path, names: str = "ab") -> None:
    for split in ("train", "test"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for number in range(12):
                image = Image.new("RGB", (32, 32), (8 * number, 0, ord(name)))
                image.save(folder / split / name / f"{number}.png")


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the data at each command, as each process does."""
    monkeypatch.setattr(setup, "_load", setup._load.__wrapped__)


@pytest.fixture
def cut(hpff: Hpff, folder: Path, write_parquet: Callable[..., None]) -> tuple[str, ...]:
    """Return the arguments that resume a run on Parquet files, which lacks its end."""
    for split in ("train", "test"):
        write_parquet(folder / "data" / f"{split}.parquet", LABELS)
    arguments = ("train", "tiny.yaml", "data=parquet:data", *SCALE, "--out", "run")
    assert hpff(*arguments).code == 0
    (folder / "run" / "report.json").unlink()
    return (*arguments, "--resume")


def test_the_same_data_elsewhere_will_do(
    hpff: Hpff, folder: Path, cut: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(folder / "data", folder / "moved")
    (folder / "data").symlink_to(folder / "moved")
    assert hpff(*cut).code == 0
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["data"]["found"]["name"] == f"parquet:{folder / 'data'}"
    (folder / "run" / "report.json").unlink()
    other = folder / "other"
    shutil.copytree(folder / "moved", other / "data")
    for name in ("tiny.yaml", "run"):
        shutil.move(folder / name, other / name)
    monkeypatch.chdir(other)
    assert hpff(*cut).code == 0


@pytest.mark.parametrize(
    ("split", "labels", "sizes", "words"),
    [
        ("train", [*LABELS, 0], (8,), "train images (40, now 41)"),
        ("test", LABELS[:20], (8,), "test images (40, now 20)"),
        ("train", LABELS[::-1], (8,), "train labels"),
        ("train", LABELS[:30] + [9] * 10, (8,), "train labels"),
    ],
)
def test_other_data_are_one_line(
    hpff: Hpff,
    folder: Path,
    cut: tuple[str, ...],
    write_parquet: Callable[..., None],
    split: str,
    labels: list[int],
    sizes: tuple[int, ...],
    words: str,
) -> None:
    write_parquet(folder / "data" / f"{split}.parquet", labels, sizes)
    message = refused(hpff, folder, *cut)
    assert "run: holds a run on other data" in message
    assert f"different: {words};" in message


def test_other_sizes_are_one_line(
    hpff: Hpff, folder: Path, cut: tuple[str, ...], write_parquet: Callable[..., None]
) -> None:
    for split in ("train", "test"):
        write_parquet(folder / "data" / f"{split}.parquet", LABELS, (16,))
    message = refused(hpff, folder, *cut)
    assert "train format of images (3x8x8, now 3x16x16)" in message


def test_from_another_folder_the_data_are_not_there(
    hpff: Hpff, folder: Path, cut: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "elsewhere").mkdir()
    for name in ("tiny.yaml", "run"):
        shutil.move(folder / name, folder / "elsewhere" / name)
    monkeypatch.chdir(folder / "elsewhere")
    message = refused(hpff, folder, *cut)
    assert f"its data are parquet:{folder}/data, and from this folder parquet:data is" in message


def test_an_image_folder(hpff: Hpff, folder: Path) -> None:
    write_images(folder / "images")
    arguments = ("train", "tiny.yaml", "data=folder:images", "image_size=32", *SCALE)
    arguments = (*arguments, "workers=0", "--out", "run")
    assert hpff(*arguments).code == 0
    (folder / "run" / "report.json").unlink()
    image = folder / "images" / "train" / "a" / "3.png"
    before = image.read_bytes()
    Image.new("RGB", (32, 32)).save(image)
    assert "different: train images themselves;" in refused(hpff, folder, *arguments, "--resume")
    image.write_bytes(before)
    for split in ("train", "test"):
        (folder / "images" / split / "b").rename(folder / "images" / split / "c")
    message = refused(hpff, folder, *arguments, "--resume")
    assert "classes (a, b, now a, c)" in message
    for split in ("train", "test"):
        (folder / "images" / split / "c").rename(folder / "images" / split / "b")
    assert hpff(*arguments, "--resume").code == 0
