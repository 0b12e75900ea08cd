"""Images with a label at each pixel: layouts, refusals, augmentation, batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_pairs import VOID, write_folder, write_pair

from hpff import data
from hpff.data.pair_augmentation import PairAugmentation
from hpff.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set")


def load(folder: Path, kind: str = "pairs") -> data.Dataset:
    return data.load(f"{kind}:{folder}")


def parquet(folder: Path, to: Path, column: str = "annotation") -> Path:
    to.mkdir()
    for split in ("train", "test"):
        rows = {"image": [], column: []}
        for file in sorted((folder / split).iterdir()):
            rows["image"].append({"bytes": file.read_bytes(), "path": file.name})
            labels = folder / f"{split}annot" / file.name
            rows[column].append({"bytes": labels.read_bytes(), "path": file.name})
        pq.write_table(pa.table(rows), to / f"{split}.parquet")
    return to


def test_a_folder_and_its_parquet_file_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    found = load(folder)
    assert (found.task, found.num_classes, found.ignore_index) == ("segmentation", 3, VOID)
    assert found.image_shape() == (3, 32, 64)
    packed = load(parquet(folder, tmp_path / "packed"), "parquet")
    before, now = data.fingerprint(found), data.fingerprint(packed)
    assert before == now
    for a, b in zip(found.train.decoded(3), packed.train.decoded(3), strict=True):
        assert torch.equal(a, b)


def test_pairs_that_are_held_out_are_not_trained_on(folder: Path) -> None:
    whole = load(folder)
    held = whole.holding_out(3)
    images = [pair[0].numpy().tobytes() for pair in map(whole.train.decoded, range(8))]
    parts = [
        {pair[0].numpy().tobytes() for pair in map(part.decoded, range(len(part)))}
        for part in (held.train, held.test)
    ]
    assert [len(part) for part in parts] == [5, 3]
    assert parts[0] | parts[1] == set(images)


@pytest.mark.parametrize("layout", ["images/{s} labels/{s}", "{s}/images {s}/masks"])
def test_other_layouts(folder: Path, tmp_path: Path, layout: str) -> None:
    images, labels = layout.split()
    for split in ("train", "test"):
        for old, new in ((split, images), (f"{split}annot", labels)):
            to = tmp_path / "other" / new.format(s="val" if split == "test" else split)
            shutil.copytree(folder / old, to)
    (tmp_path / "other" / "classes.txt").write_text("wall\nlight\ndark\n")
    found = load(tmp_path / "other")
    assert found.class_names == ("wall", "light", "dark")
    assert (len(found.train), len(found.test)) == (8, 3)


def colours(folder: Path) -> str:
    file = folder / "trainannot" / "2.png"
    Image.open(file).convert("RGB").save(file)
    return r"trainannot/2.png: the labels are stored as colours \(mode RGB\)"


def sides(folder: Path) -> str:
    file = folder / "testannot" / "1.png"
    Image.open(file).resize((32, 24)).save(file)
    return r"testannot/1.png: the labels are 24x32, but their image is 48x64; expected the same"


def no_labels(folder: Path) -> str:
    (folder / "trainannot" / "4.png").unlink()
    return r"train/4.png: there are no labels for it in .*trainannot; expected 4.png there"


def no_image(folder: Path) -> str:
    (folder / "test" / "0.png").unlink()
    return r"testannot/0.png: there is no image for these labels in .*test"


def wrong_value(folder: Path) -> str:
    (folder / "classes.txt").write_text("a\nb\nc\n")
    file = folder / "trainannot" / "7.png"
    values = np.array(Image.open(file))
    values[20, 20] = 9
    Image.fromarray(values).save(file)
    return r"trainannot/7.png: a pixel's label is 9; expected 0 to 2 \(3 classes\), or 255"


def new_value_in_tests(folder: Path) -> str:
    file = folder / "testannot" / "2.png"
    values = np.array(Image.open(file))
    values[20, 20] = 3
    Image.fromarray(values).save(file)
    return r"testannot/2.png: a pixel's label is 3; expected 0 to 2"


def no_split(folder: Path) -> str:
    shutil.rmtree(folder / "testannot")
    return r"set has no pairs of images and labels for test; expected train/ and trainannot/"


def broken_labels(folder: Path) -> str:
    (folder / "trainannot" / "0.png").write_bytes(b"no image")
    return r"trainannot/0.png: the image cannot be decoded"


FAULTS = [
    colours,
    sides,
    no_labels,
    no_image,
    wrong_value,
    new_value_in_tests,
    no_split,
    broken_labels,
]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_is_said_in_one_line_before_training(folder: Path, spoil: object) -> None:
    message = spoil(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert len(caught.value.args) == 1


def test_a_row_without_labels_is_named(folder: Path, tmp_path: Path) -> None:
    packed = parquet(folder, tmp_path / "packed")
    table = pq.read_table(packed / "train.parquet").to_pydict()
    table["annotation"][5] = None
    pq.write_table(pa.table(table), packed / "train.parquet")
    with pytest.raises(UserError, match=r"train.parquet, row 5: the labels is missing"):
        load(packed, "parquet")


def test_camvid_is_known(data_folder: Path) -> None:
    if not (data_folder / "camvid").is_dir():
        pytest.skip("no CamVid")
    found = data.load("camvid", root=data_folder)
    assert (len(found.train), len(found.test), found.num_classes) == (367, 233, 11)
    assert (found.class_names[3], found.ignore_index) == ("road", 11)
    image, labels = found.train.decoded(0)
    assert (tuple(image.shape), tuple(labels.shape)) == ((3, 360, 480), (360, 480))
    # Of the lower middle of a street scene most is road.
    assert labels[300:, 200:280].flatten().mode().values == 3


def cityscapes(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "ulm")):
        for index in range(2):
            stem = f"{city}_000000_00000{index}"
            write_pair(
                root / "cityscapes/leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                root / "cityscapes/gtFine" / split / city / f"{stem}_gtFine_labelIds.png",
                seed=index,
            )
            for other in ("instanceIds.png", "color.png", "polygons.json"):
                folder = root / "cityscapes/gtFine" / split / city
                (folder / f"{stem}_gtFine_{other}").write_bytes(b"")


def test_cityscapes_has_the_labels_of_its_benchmark(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    file = tmp_path / "cityscapes/gtFine/train/aachen/aachen_000000_000000_gtFine_labelIds.png"
    values = np.zeros((48, 64), dtype=np.uint8)
    values[0, :6] = (7, 33, 9, 26, 4, 0)  # road, bicycle, parking, car, static, unlabeled
    Image.fromarray(values).save(file)
    found = data.load("cityscapes", root=tmp_path)
    assert (found.num_classes, found.ignore_index) == (19, 255)
    assert found.train.decoded(0)[1][0, :6].tolist() == [0, 18, 255, 13, 255, 255]
    from hpff.torch_support.torchvision_import import torchvision

    known = [c for c in torchvision("datasets").Cityscapes.classes if not c.ignore_in_eval]
    assert found.class_names == tuple(c.name for c in known)
    assert found.palette == tuple(c.color for c in known)


def test_cityscapes_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cityscapes is not in .*; expected leftImg8bit/train/"):
        data.load("cityscapes", root=tmp_path)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """An image that tells its labels: red is ten times the class."""
    labels = torch.arange(12, dtype=torch.uint8).repeat_interleave(40).view(12, 40).repeat(4, 2)
    labels = labels.view(48, 80)
    image = torch.stack([10 * labels, labels.new_zeros(48, 80), labels.new_zeros(48, 80)])
    return image, labels


def test_image_and_labels_go_together() -> None:
    image, labels = pair()
    settings = PairAugmentation((32, 48), VOID, scale=(1.0, 1.0), share=1.1, jitter=False)
    seen = set()
    for seed in range(8):
        crop, map_ = settings.train(image, labels, seed)
        assert (tuple(crop.shape), tuple(map_.shape)) == ((3, 32, 48), (32, 48))
        assert torch.equal(crop[0], 10 * map_)
        seen.add(tuple(map_[0].tolist()))
        again = settings.train(image, labels, seed)
        assert torch.equal(crop, again[0])
        assert torch.equal(map_, again[1])
    assert len(seen) > 4


def test_what_lies_outside_an_image_is_ignored() -> None:
    image, labels = pair()
    settings = PairAugmentation((64, 96), VOID, scale=(0.5, 0.5), jitter=False)
    crop, map_ = settings.train(image, labels, 0)
    assert (map_ != VOID).sum() == 24 * 40
    assert crop[:, map_ == VOID].unique(dim=1).flatten().tolist() == [124, 116, 104]
    middle, map_ = settings.middle(image, labels)
    assert torch.equal(middle[0][map_ != VOID], 10 * map_[map_ != VOID])
    assert (map_ != VOID).sum() == 48 * 80


def test_a_crop_that_one_class_fills_is_drawn_again() -> None:
    labels = torch.zeros(60, 60, dtype=torch.uint8)
    labels[:, 45:] = 1
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)

    def filled(share: float) -> int:
        settings = PairAugmentation((20, 20), VOID, (1.0, 1.0), share, flip=False, jitter=False)
        maps = [settings.train(image, labels, seed)[1] for seed in range(40)]
        return sum(int(torch.bincount(m.flatten().long()).max()) > 0.75 * 400 for m in maps)

    assert filled(0.75) <= 10 < 20 <= filled(1.1)


def test_augmentation_leaves_the_global_generator_alone() -> None:
    image, labels = pair()
    before = torch.random.get_rng_state()
    PairAugmentation((32, 48), VOID).train(image, labels, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def batches(found: data.Dataset, **changes: object) -> data.ImageBatches:
    given = {"batch_size": 3, "device": "cpu", "shuffle": True, "augment": True, "workers": 0}
    return data.batches(found.train, found, drop_last=True, **given | changes)


def test_a_pass_has_as_many_steps_as_are_asked_for(folder: Path) -> None:
    found = load(folder).cropped((24, 40))
    passes = batches(found, steps=7)
    assert len(passes) == 7
    first = list(passes.epoch(torch.Generator().manual_seed(0)))
    again = list(passes.epoch(torch.Generator().manual_seed(0)))
    assert len(first) == 7
    for (images, labels), (others, maps) in zip(first, again, strict=True):
        assert (images.dtype, tuple(images.shape)) == (torch.float32, (3, 3, 24, 40))
        assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (3, 24, 40))
        assert torch.equal(images, others)
        assert torch.equal(labels, maps)
    assert not torch.equal(first[0][0], first[3][0])
    assert len(batches(found)) == 2


def test_tests_are_whole_images_in_order(folder: Path) -> None:
    write_pair(folder / "test" / "9.png", folder / "testannot" / "9.png", 1, sides=(30, 50))
    found = load(folder)
    passes = data.batches(
        found.test, found, batch_size=8, device="cpu", shuffle=False, augment=False, drop_last=False
    )
    sizes = [tuple(labels.shape) for _, labels in passes.epoch(torch.Generator())]
    assert sizes == [(1, 48, 64)] * 3 + [(1, 30, 50)]


def test_workers_give_the_same_images(folder: Path) -> None:
    found = load(folder).cropped((24, 40))
    alone, others = batches(found), batches(found, workers=1)
    for (a, b), (c, d) in zip(
        alone.epoch(torch.Generator()), others.epoch(torch.Generator()), strict=True
    ):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_broken_images_stop_a_pass_or_are_left_out(folder: Path) -> None:
    file = folder / "train" / "5.png"
    file.write_bytes(file.read_bytes()[:300])
    found = load(folder).cropped((24, 40))
    with pytest.raises(UserError, match=r"train/5.png: the image cannot be decoded"):
        list(batches(found).epoch(torch.Generator()))
    passes = batches(found, broken_images="skip", steps=6)
    sizes = [len(images) for images, _ in passes.epoch(torch.Generator())]
    assert sorted(set(sizes)) == [2, 3]
    assert list(passes.broken) == [str(file)]
