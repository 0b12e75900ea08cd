"""Folders of images and label maps, and Parquet files of both, as data for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpff.data.dataset import Dataset
from hpff.data.pairs import PackedPairs, Pair, PairFiles
from hpff.data.segmentation import SEGMENTATION_DATASETS, SegmentationFacts, build_pairs
from hpff.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MARKS = ("", "_L", "_label", "_labels", "_mask")  # of a label map's name, behind its image's
_TESTS = ("test", "val", "validation")
_LAYOUTS = (
    ("{split}", "{split}annot"),
    *(("images/{split}", f"{kind}/{{split}}") for kind in ("labels", "masks", "annotations")),
    *(("{split}/images", f"{{split}}/{kind}") for kind in ("labels", "masks", "annotations")),
)
_EXPECTED = (
    "expected train/ and trainannot/ (as CamVid comes), or images/train/ and labels/train/, or "
    "train/images/ and train/labels/ (masks/ or annotations/ will do as well), and the same for "
    "test (or val)"
)
_LABEL_COLUMNS = ("annotation", "mask", "segmentation", "label_map", "label")
_IMAGE_COLUMNS = ("image", "img")


def load_pairs(folder: Path, name: str | None = None) -> Dataset:
    """Return the data set of a folder of pairs.

    Image and label map have the same name, or the map's ends in "_L", "_label" or "_mask". The
    classes' names are the lines of classes.txt in the folder, if there is one. Folders and files
    called camvid are known.

    Args:
        folder: see `_EXPECTED`.
        name: of the data set; by default "pairs:" and the folder.

    Raises:
        UserError: the folder is not laid out so, one half of a pair is missing, or labels do not
            fit; the message names the file.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {kind}; {_EXPECTED}")
    train, test = _split(folder, ("train",)), _split(folder, _TESTS)
    return build_pairs(
        name or f"pairs:{folder}",
        PairFiles(train),
        PairFiles(test),
        facts=_facts(folder),
        class_names=_class_names(folder),
    )


def load_pair_parquet(folder: Path, name: str | None = None) -> Dataset:
    """Return the data set of train*.parquet and test*.parquet with encoded images and label maps.

    Args:
        folder: that of the files.
        name: of the data set; by default "parquet:" and the folder.

    Raises:
        UserError: a split is missing or empty, or labels do not fit; the message names the row.
    """
    train, test = (_packed(folder, split) for split in ("train", "test"))
    return build_pairs(
        name or f"parquet:{folder}",
        train,
        test,
        facts=_facts(folder),
        class_names=_class_names(folder),
    )


def holds_pairs(folder: Path) -> bool:
    """Whether the Parquet files of a folder have label maps, and not one label an image."""
    for path in sorted(folder.glob("train*.parquet"))[:1]:
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError):
            return False  # The reader of labels says what is wrong.
        return _column(schema, _LABEL_COLUMNS) is not None
    return False


def _facts(folder: Path) -> SegmentationFacts | None:
    return SEGMENTATION_DATASETS["camvid"] if folder.resolve().name.lower() == "camvid" else None


def _class_names(folder: Path) -> tuple[str, ...] | None:
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = tuple(name for name in names if name)
    if not found:
        raise UserError(f"{file} is empty; expected a class's name on each line")
    return found


def _split(folder: Path, splits: Sequence[str]) -> list[tuple[Path, Path]]:
    for split in splits:
        for images, labels in _LAYOUTS:
            first, second = (folder / each.format(split=split) for each in (images, labels))
            if first.is_dir() and second.is_dir():
                return _pairs(first, second)
    raise UserError(f"{folder} has no pairs of images and labels for {splits[0]}; {_EXPECTED}")


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Every image with its label map; neither may be alone."""
    pictures = {file.stem: file for file in _files(images)}
    maps = {file.stem: file for file in _files(labels)}
    found = []
    for stem, picture in pictures.items():
        match = next((maps.pop(stem + m) for m in _MARKS if stem + m in maps), None)
        if match is None:
            raise UserError(
                f"{picture}: there are no labels for it in {labels}; expected {stem}.png there"
            )
        found.append((picture, match))
    for left in maps.values():
        raise UserError(f"{left}: there is no image for these labels in {images}")
    if not found:
        raise UserError(f"{images} holds no images ({', '.join(_SUFFIXES)}); {_EXPECTED}")
    return found


def _files(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in _SUFFIXES)


def _packed(folder: Path, split: str) -> PackedPairs:
    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no {split}*.parquet; expected at least one such file")
    pairs: list[Pair] = []
    names: list[str] = []
    for path in paths:
        found = _rows(path)
        pairs += found
        names += [f"{path}, row {row}" for row in range(len(found))]
    if not pairs:
        raise UserError(f"{paths[0]}: the {split} split is empty; expected at least one row")
    return PackedPairs(pairs, names)


def _rows(path: Path) -> list[Pair]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as Parquet ({reason}); "
            "expected a whole Parquet file, so fetch or write it again"
        ) from error
    columns = [_column(table.schema, known) for known in (_IMAGE_COLUMNS, _LABEL_COLUMNS)]
    for column, kind in zip(columns, ("image", "annotation"), strict=True):
        if column is None:
            raise UserError(
                f'{path}: there is no column "{kind}" of encoded images; the columns are '
                f"{', '.join(table.schema.names)}"
            )
    images, labels = (_encoded(table, str(column)) for column in columns)
    for row, (image, map_) in enumerate(zip(images, labels, strict=True)):
        if not image or not map_:
            missing = "labels" if image else "image"
            raise UserError(f"{path}, row {row}: the {missing} is missing (null or empty)")
    return list(zip(images, labels, strict=True))


def _column(schema: Any, known: Sequence[str]) -> str | None:
    """The first of these columns that has encoded images."""
    return next((n for n in known if n in schema.names and _is_image(schema.field(n).type)), None)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _encoded(table: Any, column: str) -> list[bytes]:
    values = table.column(column).to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]
