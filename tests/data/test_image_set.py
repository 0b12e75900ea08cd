from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpff.data import ImageSet
from hpff.errors import UserError


def image_set(labels: list[int]) -> ImageSet:
    """Images whose every byte is the image's own number."""
    numbers = torch.arange(len(labels), dtype=torch.uint8)
    images = numbers[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def numbers(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(LABELS, st.data())
def test_a_subset_is_balanced_as_far_as_the_classes_go(labels, data):
    whole = image_set(labels)
    n = data.draw(st.integers(1, len(labels)))
    counts = whole.subset(n).labels.bincount(minlength=5)
    available = whole.labels.bincount(minlength=5)
    assert counts.sum() == n
    largest = counts.max()
    for count, stock in zip(counts, available, strict=True):
        assert count >= min(stock, largest - 1)


@given(LABELS, st.integers(0, 3), st.data())
def test_a_subset_is_made_of_different_images_with_their_own_labels(labels, seed, data):
    n = data.draw(st.integers(1, len(labels)))
    part = image_set(labels).subset(n, seed)
    chosen = numbers(part)
    assert len(set(chosen)) == n
    assert [labels[number] for number in chosen] == part.labels.tolist()


@given(LABELS, st.data())
def test_a_smaller_subset_is_the_start_of_a_larger_one(labels, data):
    n = data.draw(st.integers(1, len(labels)))
    m = data.draw(st.integers(1, n))
    whole = image_set(labels)
    assert numbers(whole.subset(n, 7))[:m] == numbers(whole.subset(m, 7))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 3), st.data())
def test_what_a_subset_leaves_is_all_the_others(labels, seed, data):
    n = data.draw(st.integers(1, len(labels) - 1))
    whole = image_set(labels)
    rest = whole.without(n, seed)
    assert sorted(numbers(whole.subset(n, seed)) + numbers(rest)) == list(range(len(labels)))
    assert [labels[number] for number in numbers(rest)] == rest.labels.tolist()
    with pytest.raises(UserError, match="were to be held out; expected fewer"):
        whole.without(len(labels))


def test_the_seed_decides():
    whole = image_set([0, 1] * 50)
    assert numbers(whole.subset(20, 1)) == numbers(whole.subset(20, 1))
    assert numbers(whole.subset(20, 1)) != numbers(whole.subset(20, 2))


@pytest.mark.parametrize("n", [0, -1, 4])
def test_an_impossible_subset_is_refused(n):
    with pytest.raises(UserError, match=f"subset of {n} images was asked for; expected 1 to 3"):
        image_set([0, 1, 2]).subset(n)


def test_wrong_tensors_are_refused():
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=r"images are float32 of shape \(2, 3, 4, 4\)"):
        ImageSet(images.float(), labels)
    with pytest.raises(UserError, match="images are uint8 of shape"):
        ImageSet(images[0], labels)
    with pytest.raises(UserError, match="labels are int32"):
        ImageSet(images, labels.int())
    with pytest.raises(UserError, match=r"labels are int64 of shape \(1,\)"):
        ImageSet(images, labels[:1])


def test_it_moves_between_devices():
    moved = image_set([0, 1]).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
