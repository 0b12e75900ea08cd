from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpff import data
from hpff.errors import UserError


def png(pixels: np.ndarray, **options) -> bytes:
    """Encode (H, W) or (H, W, C) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def random_images(count: int, *shape: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def write(path: Path, images: list, labels: list, column: str = "img", **options) -> Path:
    """Write encoded images in the Hugging Face schema."""
    structs = [None if image is None else {"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = pa.array(labels, pa.int64())
    write_table(path, {column: pa.array(structs, kind), "label": label}, **options)
    return path


def write_table(path: Path, columns: dict, metadata: dict | None = None, **options) -> None:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound data set: 8 training and 4 test images of 6x5, 4 classes, four rows a group."""
    write(tmp_path / "train.parquet", encoded(8), [0, 1, 2, 3] * 2, row_group_size=4)
    write(tmp_path / "test.parquet", encoded(4), [3, 2, 1, 0])
    return tmp_path


def encoded(count: int) -> list[bytes]:
    return [png(pixels) for pixels in random_images(count, 6, 5, 3)]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        data.load(f"parquet:{folder}")
    message = str(caught.value)
    assert "\n" not in message
    return message


@given(
    count=st.integers(1, 12),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    channels=st.sampled_from([(), (3,)]),
    group=st.integers(1, 12),
    column=st.sampled_from(["img", "image"]),
)
@settings(max_examples=25)
def test_what_is_written_is_read(tmp_path_factory, count, size, channels, group, column):
    folder = tmp_path_factory.mktemp("set")
    pixels, labels = random_images(count, *size, *channels), list(range(count))
    for name in ("train-00000-of-00001.parquet", "test.parquet"):
        images = [png(image) for image in pixels]
        write(folder / name, images, labels, column, row_group_size=group)
    found = data.load(f"parquet:{folder}")
    expected = torch.from_numpy(np.stack(pixels)).reshape(count, *size, -1).permute(0, 3, 1, 2)
    for part in (found.train, found.test):
        assert torch.equal(part.images, expected)
        assert part.labels.tolist() == labels
    assert found.num_classes == count
    assert found.class_names == tuple(map(str, range(count)))


def test_shards_follow_each_other_and_empty_ones_are_passed_over(folder):
    images = encoded(6)
    write(folder / "train-2.parquet", images[:2], [1, 2])
    write(folder / "train-1.parquet", [], [])
    found = data.load(f"parquet:{folder}")
    assert found.train.labels.tolist() == [1, 2, 0, 1, 2, 3, 0, 1, 2, 3]


def test_images_may_be_plain_bytes(folder):
    columns = {"image": pa.array(encoded(2), pa.large_binary()), "label": pa.array([0, 1])}
    write_table(folder / "test.parquet", columns)
    assert len(data.load(f"parquet:{folder}").test) == 2


def test_a_relative_folder_starts_at_root(folder):
    found = data.load(f"parquet:{folder.name}", root=folder.parent)
    assert len(found.train) == 8


def test_class_names_come_from_the_metadata(folder):
    names = ["cat", "dog", "owl", "fox", "elk"]
    metadata = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    columns = {"img": pa.array(encoded(2)), "label": pa.array([0, 4])}
    write_table(folder / "train.parquet", columns, metadata)
    found = data.load(f"parquet:{folder}")
    assert found.class_names == tuple(names)
    assert found.num_classes == 5


@pytest.mark.parametrize("metadata", [{}, {"info": None}, {"info": {"features": []}}, 3])
def test_other_metadata_is_no_matter(folder, metadata):
    columns = {"img": pa.array(encoded(2)), "label": pa.array([0, 1])}
    write_table(folder / "test.parquet", columns, metadata)
    write_table(folder / "train.parquet", columns, metadata)
    assert data.load(f"parquet:{folder}").class_names == ("0", "1")


def test_statistics_are_of_the_training_split(folder):
    found = data.load(f"parquet:{folder}")
    pixels = found.train.images.double() / 255
    assert found.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert found.augmentation == data.Augmentation(0, "zeros", flip=False)


def test_a_constant_channel_does_not_divide_by_zero(folder):
    write(folder / "train.parquet", [png(np.zeros((6, 5, 3), np.uint8))] * 2, [0, 1])
    write(folder / "test.parquet", encoded(1), [0])
    assert data.load(f"parquet:{folder}").std == (1.0, 1.0, 1.0)


def test_gray_images_among_colored_ones_turn_into_rgb(folder):
    gray = random_images(1, 6, 5)[0]
    write(folder / "test.parquet", [png(gray)], [0])
    image = data.load(f"parquet:{folder}").test.images[0]
    assert torch.equal(image, torch.from_numpy(gray).expand(3, -1, -1))


def test_images_with_transparency_turn_into_rgb(folder):
    pixels = random_images(1, 6, 5, 4)[0]
    write(folder / "test.parquet", [png(pixels)], [0])
    image = data.load(f"parquet:{folder}").test.images[0]
    assert torch.equal(image, torch.from_numpy(pixels[:, :, :3]).permute(2, 0, 1))


# What is refused: each in one line that names the file, and the row where there is one.


def test_a_missing_folder(tmp_path):
    message = refusal(tmp_path / "none")
    assert message.startswith(f"{tmp_path / 'none'} does not exist; expected a folder with")


def test_a_file_in_place_of_the_folder(folder):
    path = folder / "train.parquet"
    assert refusal(path).startswith(f"{path} is a file; expected a folder with train*.parquet")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split(folder, split):
    (folder / f"{split}.parquet").unlink()
    assert refusal(folder).startswith(f"{folder} holds no {split}*.parquet")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split(folder, split):
    path = write(folder / f"{split}.parquet", [], [])
    assert refusal(folder) == f"{path}: the {split} split is empty; expected at least one row"


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_file(folder, keep):
    path = folder / "test.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert refusal(folder).startswith(f"{path}: cannot be read as Parquet (")


def test_a_file_that_is_not_parquet(folder):
    path = folder / "train.parquet"
    path.write_text("image,label\n" * 100)
    assert refusal(folder).startswith(f"{path}: cannot be read as Parquet (")


def test_a_damaged_page(folder):
    path = folder / "test.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes([255]) * 36
    path.write_bytes(content)
    assert refusal(folder).startswith(f"{path}: cannot be read as Parquet (")


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6))
@settings(max_examples=200)
def test_no_damage_ends_in_another_error(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("set")
    for split in ("train", "test"):
        path = write(folder / f"{split}.parquet", encoded(4), [0, 1, 2, 3])
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        assert data.load(f"parquet:{folder}").test.shape == (3, 6, 5)
    except UserError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - some damage goes unnoticed
        assert "\n" not in str(error)  # noqa: PT017


def test_a_folder_in_place_of_a_file(folder):
    path = folder / "train-extra.parquet"
    path.mkdir()
    assert refusal(folder).startswith(f"{path}: cannot be read as Parquet (")


def test_no_image_column(folder):
    path = folder / "train.parquet"
    write(path, encoded(1), [0], column="picture")
    assert refusal(folder) == (
        f'{path}: there is no column "img" or "image"; the columns are "picture", "label"'
    )


def test_no_label_column(folder):
    path = folder / "test.parquet"
    write_table(path, {"img": pa.array(encoded(1))})
    assert refusal(folder) == f'{path}: there is no column "label"; the columns are "img"'


def test_an_image_column_of_another_type(folder):
    path = folder / "test.parquet"
    for column in (pa.array(["a"]), pa.array([{"bytes": "a"}]), pa.array([{"path": "a"}])):
        write_table(path, {"img": column, "label": pa.array([0])})
        assert refusal(folder).startswith(f'{path}: the column "img" is of type ')


@pytest.mark.parametrize("labels", [["cat"], [1.0], [True]])
def test_a_label_column_of_another_type(folder, labels):
    path = folder / "test.parquet"
    write_table(path, {"img": pa.array(encoded(1)), "label": pa.array(labels)})
    assert refusal(folder).startswith(f'{path}: the column "label" is of type ')


@pytest.mark.parametrize(
    "bad",
    [
        b"not an image",
        encoded(1)[0][:-30],
        encoded(1)[0][:40],
        png(random_images(1, 6, 5, 3)[0], format="JPEG")[:-200],
    ],
    ids=["text", "short PNG", "PNG header", "short JPEG"],
)
def test_an_image_that_cannot_be_decoded(folder, bad):
    images = encoded(8)
    images[6] = bad
    path = write(folder / "train.parquet", images, [0, 1, 2, 3] * 2, row_group_size=4)
    assert refusal(folder).startswith(f"{path}, row 6: the image cannot be decoded (")


@given(st.binary(max_size=200), st.integers(0, 100))
@settings(max_examples=150)
def test_no_bytes_at_all_end_in_another_error(junk, place):
    from hpff.data.decode import decode

    whole = encoded(1)[0]
    for content in (junk, whole[:place] + junk + whole[place + len(junk) :]):
        try:
            assert decode(content, (6, 5, 3)).shape == (6, 5, 3)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most contents are refused, not all


def test_a_missing_image(folder):
    for missing in (None, b""):
        path = write(folder / "test.parquet", [*encoded(2), missing], [0, 1, 2])
        assert refusal(folder).startswith(f"{path}, row 2: the image's bytes are missing (null or")


def test_images_of_different_sizes(folder):
    path = write(folder / "test.parquet", [*encoded(1), png(random_images(1, 7, 5, 3)[0])], [0, 1])
    assert refusal(folder) == (
        f"{path}, row 1: the image is 7x5x3, but the first one of the training split is 6x5x3; "
        "expected images of one size, or treatment=imagenet, which crops images of any size"
    )


def test_a_colored_image_among_gray_ones(folder):
    path = write(folder / "train.parquet", [png(random_images(1, 6, 5)[0]), *encoded(3)], range(4))
    assert refusal(folder).startswith(f"{path}, row 1: the image is 6x5x3, but the first one")


def test_pixels_of_sixteen_bits(folder):
    path = write(folder / "test.parquet", [png(np.zeros((6, 5), np.uint16))], [0])
    assert refusal(folder).startswith(
        f"{path}, row 0: the image's pixels are of mode I;16; expected 8 bits a channel"
    )


@pytest.mark.parametrize(
    ("split", "label", "complaint"),
    [
        ("train", None, "the label is missing (null); expected a class"),
        ("train", -1, "the label is -1; expected a class from 0 up"),
        ("test", 2**40, f"the label is {2**40}; expected 0 to 3, as there are 4 classes"),
        ("train", 255, "the label is 255; expected 0 to 4, as there are 5 classes"),
        ("test", 4, "the label is 4; expected 0 to 3, as there are 4 classes"),
    ],
)
def test_a_label_that_is_no_class(folder, split, label, complaint):
    labels = [0, 1, 2, 3, 0, label]
    path = write(folder / f"{split}.parquet", encoded(6), labels, row_group_size=4)
    assert refusal(folder) == f"{path}, row 5: {complaint}"
