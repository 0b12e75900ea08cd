"""Image folders: what they are, how their images reach the device, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpff import data
from hpff.data.resized_crop import ResizedCrop, random_box
from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision

PARTS = {"train": ("cat", "dog"), "val": ("cat", "dog")}


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    """Write a smooth picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training and four test images of two classes, all of different sizes."""
    for split, classes in PARTS.items():
        for label, name in enumerate(classes):
            for number in range(3 if split == "train" else 2):
                size = (40 + 7 * number, 50 - 9 * label)
                picture(tmp_path / split / name / f"{number}.JPEG", *size, seed=number + 5 * label)
    return tmp_path


def stream(found: data.Dataset, **changes) -> data.StreamedBatches:
    settings = {
        "batch_size": 2,
        "device": "cpu",
        "shuffle": True,
        "augment": True,
        "drop_last": True,
        "image_size": 16,
        "workers": 0,
    }
    return data.StreamedBatches(found.train, found, **(settings | changes))


def epoch(batches, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches.epoch(torch.Generator().manual_seed(seed)), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_classes_are_the_folders_in_order(folder):
    found = data.load(f"folder:{folder}")
    assert found.class_names == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.image_shape() == (3, 224, 224)
    assert found.image_shape(96) == (3, 96, 96)


def test_images_that_are_held_out_are_not_trained_on(folder):
    held = data.load(f"folder:{folder}").holding_out(2)
    trained, tested = ({part.read(i) for i in range(len(part))} for part in (held.train, held.test))
    assert (len(trained), len(tested)) == (4, 2)
    assert not trained & tested
    assert held.test.labels.tolist() == [0, 1]


def test_images_reach_the_model_at_the_published_size(folder):
    for augment in (True, False):
        images, _ = epoch(stream(data.load(f"folder:{folder}"), image_size=None, augment=augment))
        assert images.shape == (6, 3, 224, 224)
        assert images.dtype == torch.float32


def test_files_that_are_no_images_and_hidden_ones_are_passed_over(folder):
    for name in ("notes.txt", ".0.JPEG", "0.JPEG.part"):
        (folder / "train" / "cat" / name).write_text("none")
    (folder / "train" / ".cache").mkdir()
    assert len(data.load(f"folder:{folder}").train) == 6


def test_imagenet_is_a_folder_below_the_root(folder, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    folder.joinpath("train").rename(folder / "t")
    (root / "imagenet").mkdir()
    (folder / "t").rename(root / "imagenet" / "train")
    (folder / "val").rename(root / "imagenet" / "val")
    assert len(data.load("imagenet", root=root).test) == 4


def test_imagenet_that_is_not_there_says_what_to_fetch(tmp_path):
    with pytest.raises(UserError) as caught:
        data.load("imagenet", root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"imagenet is not in {tmp_path / 'imagenet'}")
    assert "ILSVRC2012_img_train.tar" in message
    assert "\n" not in message


def test_the_middle_of_a_test_image_is_torchvisions(folder):
    transforms = torchvision("transforms")
    path = folder / "train" / "dog" / "1.JPEG"
    for size in (16, 31, 40):
        reference = transforms.Compose(
            [transforms.Resize(int(size * 256 / 224)), transforms.CenterCrop(size)]
        )
        with Image.open(path) as image:
            expected = np.asarray(reference(image))
        assert np.array_equal(ResizedCrop(size).test(path.read_bytes()), expected)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32))
@settings(max_examples=200)
def test_a_random_box_lies_in_the_image(width, height, seed):
    left, top, right, bottom = random_box(width, height, random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_have_the_published_areas_and_ratios():
    chance = random.Random(0)
    boxes = np.array([random_box(400, 300, chance) for _ in range(3000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(1) / (400 * 300)
    ratio = sides[:, 0] / sides[:, 1]
    assert 0.078 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.73 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.36
    assert abs(np.log(ratio)).mean() == pytest.approx(np.log(4 / 3) / 2, rel=0.1)
    assert len(np.unique(boxes[:, 0])) > 100


def test_a_training_crop_shows_the_part_of_its_image_that_the_seed_decides(folder):
    """Against torchvision's crop and resize of the same box, and flipped every other time."""
    functional = torchvision("transforms.functional")
    path = folder / "train" / "cat" / "2.JPEG"
    flips = 0
    with Image.open(path) as image:
        for seed in range(40):
            left, top, right, bottom = random_box(*image.size, random.Random(seed))
            box = top, left, bottom - top, right - left
            expected = np.asarray(functional.resized_crop(image, *box, [16, 16]))
            found = ResizedCrop(16).train(path.read_bytes(), seed)
            flipped = not np.array_equal(found, expected)
            assert not flipped or np.array_equal(found[:, ::-1], expected)
            flips += flipped
    assert 10 < flips < 30


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    picture(tmp_path / "large.jpg", 1600, 1200)
    whole = (tmp_path / "large.jpg").read_bytes()
    Image.open(tmp_path / "large.jpg").save(tmp_path / "large.png")
    exact = (tmp_path / "large.png").read_bytes()
    crop = ResizedCrop(32)
    for seed in range(8):
        difference = crop.train(whole, seed).astype(int) - crop.train(exact, seed).astype(int)
        assert np.abs(difference).mean() < 3


def test_batches_are_the_normalized_crops(folder):
    found = data.load(f"folder:{folder}")
    images, labels = epoch(stream(found, shuffle=False, augment=False, drop_last=False))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    paths = sorted((folder / "train").rglob("*.JPEG"))
    crops = torch.from_numpy(np.stack([ResizedCrop(16).test(path.read_bytes()) for path in paths]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
    expected = (crops.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


def by_label(images: torch.Tensor, labels: torch.Tensor) -> dict[int, torch.Tensor]:
    return {label: images[labels == label] for label in (0, 1)}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_neither_workers_nor_batch_size_change_what_a_seed_gives(folder):
    found = data.load(f"folder:{folder}")
    images, labels = epoch(stream(found))
    again, more = stream(found, workers=2), stream(found, batch_size=3, channels_last=True)
    for other in (*[epoch(again) for _ in range(2)], epoch(more)):
        assert torch.equal(other[1], labels)
        assert torch.equal(other[0], images)
    assert not torch.equal(epoch(stream(found), seed=4)[0], images)


def test_what_is_drawn_elsewhere_does_not_matter_and_nothing_is_drawn_there(folder):
    found = data.load(f"folder:{folder}")
    before = torch.get_rng_state()
    first, _ = epoch(stream(found))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(epoch(stream(found))[0], first)


def test_a_subset_takes_the_classes_in_turn(folder):
    part = data.load(f"folder:{folder}").train.subset(4)
    assert part.labels.bincount().tolist() == [2, 2]
    assert len({part.where(index) for index in range(4)}) == 4


# Broken images: named, counted, and never passed over in silence.


@pytest.fixture
def broken(folder: Path) -> Path:
    path = folder / "train" / "cat" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:-300])
    return path


def test_a_broken_image_stops_the_pass_and_is_named(folder, broken):
    with pytest.raises(UserError) as caught:
        epoch(stream(data.load(f"folder:{folder}")))
    message = str(caught.value)
    assert message.startswith(f"{broken}: the image cannot be decoded (")
    assert "broken_images=skip" in message


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_left_out_and_remembered(folder, broken, workers):
    batches = stream(
        data.load(f"folder:{folder}"),
        batch_size=3,
        shuffle=False,
        workers=workers,
        broken_images="skip",
    )
    _, labels = epoch(batches)
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert list(batches.broken) == [str(broken)]
    epoch(batches)
    assert len(batches.broken) == 1


def test_an_image_that_is_gone_is_broken(folder):
    batches = stream(data.load(f"folder:{folder}"), broken_images="skip")
    path = folder / "train" / "dog" / "0.JPEG"
    path.unlink()
    epoch(batches)
    assert batches.broken == {str(path): "the image cannot be read (No such file or directory)"}


def test_a_training_batch_of_one_image_is_passed_over(folder, broken):
    batches = stream(data.load(f"folder:{folder}"), shuffle=False, broken_images="skip")
    assert epoch(batches)[1].tolist() == [0, 1, 1, 1]


def test_a_training_batch_with_too_few_images_for_its_shares_is_passed_over(folder, broken):
    batches = stream(
        data.load(f"folder:{folder}"), batch_size=3, shuffle=False, broken_images="skip", shares=2
    )
    with pytest.raises(UserError, match="no batch is left"):
        epoch(batches)
    settings = {"batch_size": 6, "shuffle": False, "broken_images": "skip"}
    assert len(epoch(stream(data.load(f"folder:{folder}"), shares=2, **settings))[1]) == 5


def test_a_split_of_broken_images_is_refused(folder):
    for path in (folder / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no batch is left"):
        epoch(stream(data.load(f"folder:{folder}"), broken_images="skip"))


# Images of one size, in memory.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("bird", "fish"):
            for number in range(3):
                picture(tmp_path / "small" / split / name / f"{number}.png", 12, 10, seed=number)
    return tmp_path / "small"


def test_images_of_one_size_can_be_held_in_memory(small):
    found = data.load(f"folder:{small}", treatment="plain")
    assert found.train.images.shape == (6, 3, 10, 12)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.augmentation == data.Augmentation(1, "zeros", flip=False)


def test_a_broken_image_in_memory(small):
    path = small / "test" / "fish" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        data.load(f"folder:{small}", treatment="plain")
    assert str(caught.value).startswith(f"{path}: the image cannot be decoded (")
    found = data.load(f"folder:{small}", treatment="plain", broken="skip")
    assert list(found.broken) == [str(path)]
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1]


def test_images_of_several_sizes_do_not_go_to_memory(small):
    path = small / "train" / "fish" / "1.png"
    picture(path, 12, 11)
    with pytest.raises(UserError) as caught:
        data.load(f"folder:{small}", treatment="plain", broken="skip")
    assert str(caught.value).startswith(f"{path}: the image is 11x12x3, but the first one of")
    assert "treatment=imagenet" in str(caught.value)


def test_a_published_treatment_by_name(small):
    found = data.load(f"folder:{small}", treatment="stl10")
    assert found.augmentation == data.Augmentation(4, "zeros", flip=True)
    assert found.mean == found.std == (0.5, 0.5, 0.5)


# What is refused.


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "val").rename(folder / "tests"), "is not laid out as a data set"),
        (lambda folder: (folder / "train").rename(folder / "tr"), "is not laid out as a data set"),
        (lambda folder: (folder / "test").mkdir(), "has both test/ and val/"),
        (lambda folder: (folder / "val" / "cow").mkdir(), "cow is a class that"),
        (lambda folder: (folder / "train" / "ant").mkdir(), "ant holds no images"),
    ],
)
def test_a_folder_of_another_layout(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError) as caught:
        data.load(f"folder:{folder}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="gone does not exist; expected train/ and test/"):
        data.load(f"folder:{tmp_path / 'gone'}")


@pytest.mark.parametrize(
    ("name", "treatment", "words"),
    [
        ("cifar10", "svhn", "cifar10 has a published one of its own"),
        ("digits", "plainn", 'treatment is "plainn"; expected one of auto, cifar, '),
    ],
)
def test_a_treatment_that_cannot_be(name, treatment, words):
    with pytest.raises(UserError, match=words):
        data.load(name, treatment=treatment)


def test_a_treatment_of_colors_refuses_gray_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "one").mkdir(parents=True)
        Image.new("L", (12, 12)).save(tmp_path / split / "one" / "0.png")
    with pytest.raises(UserError, match="3 channels, but these have 1"):
        data.load(f"folder:{tmp_path}", treatment="cifar")
