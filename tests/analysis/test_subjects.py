"""The images that networks are shown: the same ones, of as many classes as can be told apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hpff import data, models
from hpff.analysis import Network
from hpff.analysis.subjects import Subject, check_comparable
from hpff.data import ImageSet
from hpff.errors import UserError
from hpff.runs import checkpoint
from hpff.runs.finished_run import FinishedRun
from hpff.training.loop import train


@pytest.fixture(scope="module")
def subject() -> Subject:
    digits = data.load("digits")
    labels = torch.arange(len(digits.test)) % 30
    many = dataclasses.replace(
        digits,
        test=ImageSet(digits.test.images, labels),  # type: ignore[union-attr]
        num_classes=30,
        class_names=tuple(map(str, range(30))),
    )
    model = models.create("resnet20", 30, in_channels=1, width=4)
    network = Network.of(model, modules=2, example=torch.zeros(2, 1, 8, 8))
    return Subject("net", network, many, (1, 8, 8))


def labels_of(batches: object) -> torch.Tensor:
    return torch.cat([labels for _, labels in batches])  # type: ignore[attr-defined]


def test_pictures_show_a_few_classes_of_many(subject: Subject) -> None:
    labels = labels_of(subject.drawn(100))
    assert len(labels) == 100
    assert sorted(set(labels.tolist())) == list(range(10))
    assert set(labels_of(subject.drawn(1000)).tolist()) == set(range(20))


def test_a_pass_is_the_same_each_time(subject: Subject) -> None:
    for batches in (subject.test(50), subject.train(50), subject.training()):
        first, second = ([images for images, _ in batches] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(UserError, match="samples is 0"):
        subject.test(0)


def test_images_by_their_numbers_are_seen_as_they_were(subject: Subject) -> None:
    images, labels = subject.images([5, 3])
    test = subject.dataset.test
    assert isinstance(test, ImageSet)
    assert labels.tolist() == [5, 3]
    assert torch.allclose(255 * subject.visible(images), test.images[[5, 3]].float(), atol=1e-3)
    with pytest.raises(UserError, match="expected numbers of 0 to 359"):
        subject.images([-1])


def test_networks_of_other_classes_are_no_comparison(subject: Subject) -> None:
    other = dataclasses.replace(subject, dataset=data.load("digits"), label="other")
    with pytest.raises(UserError, match="other: has 10 classes and net 30"):
        check_comparable([subject, other], given=True)
    fewer = dataclasses.replace(subject.dataset, test=subject.dataset.test.subset(300))
    different = dataclasses.replace(subject, dataset=fewer, label="fewer")
    with pytest.raises(UserError, match="fewer: was trained on other data"):
        check_comparable([subject, different], given=False)
    check_comparable([subject, different], given=True)
    check_comparable([subject, subject.named("again")], given=False)


def test_a_run_that_was_replayed_on_a_gpu_is_seen_anywhere(
    tmp_path: Path, make_recipe: Any, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_recipe(), tmp_path / "run", resume=False, observer=silent())
    found = FinishedRun.read(tmp_path / "run")
    replayed = dataclasses.replace(found.recipe, cuda_graph=True)
    saved = checkpoint.load(found.path / "checkpoint.pt")
    saved = dataclasses.replace(saved, recipe=replayed.to_plain())
    checkpoint.save(found.path / "checkpoint.pt", saved)
    monkeypatch.setattr(
        FinishedRun, "read", lambda path: dataclasses.replace(found, recipe=replayed)
    )
    assert Subject.of_run(tmp_path / "run").network
