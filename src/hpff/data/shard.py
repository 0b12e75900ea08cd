"""One Parquet file of images and labels, in the Hugging Face schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hpff.errors import UserError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMN = "label"
_LARGEST_LABEL = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Shard:
    """What one file holds; its rows are counted from 0 in every message.

    Attributes:
        path: of the file.
        images: N encoded images; one that is null has no bytes.
        labels: int64 (N,).
        class_names: one a class, where the file's metadata tells them.
    """

    path: Path
    images: list[bytes]
    labels: Tensor
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)


def read_shard(path: Path) -> Shard:
    """Return what the file holds.

    Raises:
        UserError: the file is missing, cut short or not Parquet, a column is missing or of another
            type, or a label is null or negative; the message names the file and where there is one
            the row.
    """
    with _readable(path):
        file = pq.ParquetFile(path)
    image_column = _image_column(path, file.schema_arrow)
    _check_label_column(path, file.schema_arrow)
    images: list[bytes] = []
    labels: list[int] = []
    for group in range(file.num_row_groups):
        with _readable(path):
            table = file.read_row_group(group, columns=[image_column, _LABEL_COLUMN])
            encoded = _encoded(table.column(image_column.partition(".")[0]))
            found = table.column(_LABEL_COLUMN).to_pylist()
        labels.extend(_checked(path, len(labels), found))
        images.extend(image or b"" for image in encoded)
    return Shard(
        path, images, torch.tensor(labels, dtype=torch.int64), _class_names(file.schema_arrow)
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; expected a Parquet file") from error
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as Parquet ({reason}); "
            "expected a whole Parquet file, so fetch or write it again"
        ) from error


def _image_column(path: Path, schema: Any) -> str:
    """Return the name, such as "img.bytes", of the column with the encoded images."""
    name = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if name is None:
        raise UserError(
            f'{path}: there is no column "img" or "image"; the columns are {_listed(schema.names)}'
        )
    kind = schema.field(name).type
    if _is_bytes(kind):
        return name
    if _is_struct_with_bytes(kind):
        return f"{name}.bytes"
    raise UserError(
        f'{path}: the column "{name}" is of type {kind}; '
        "expected encoded images, as binary or as struct<bytes: binary, path: string>"
    )


def _check_label_column(path: Path, schema: Any) -> None:
    if _LABEL_COLUMN not in schema.names:
        raise UserError(
            f'{path}: there is no column "label"; the columns are {_listed(schema.names)}'
        )
    kind = schema.field(_LABEL_COLUMN).type
    if not pa.types.is_integer(kind):
        raise UserError(f'{path}: the column "label" is of type {kind}; expected integers')


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct_with_bytes(kind: Any) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return _is_bytes(kind.field("bytes").type)


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"


def _encoded(column: Any) -> list[bytes | None]:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    encoded: list[bytes | None] = column.to_pylist()
    return encoded


def _checked(path: Path, first_row: int, labels: list[int | None]) -> Iterator[int]:
    for row, label in enumerate(labels, first_row):
        if label is None:
            raise UserError(f"{path}, row {row}: the label is missing (null); expected a class")
        if not 0 <= label <= _LARGEST_LABEL:
            raise UserError(f"{path}, row {row}: the label is {label}; expected a class from 0 up")
        yield label


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """Return the classes' names where the file's metadata tells them."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][_LABEL_COLUMN]["names"]
        return tuple(str(name) for name in names) or None
    except (KeyError, TypeError, ValueError):
        return None
