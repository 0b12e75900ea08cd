"""The examples run, and learn."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpff import check_gradients
from hpff.features import Sequences

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text() -> ModuleType:
    return load("text")


@pytest.fixture(scope="module")
def small(text: ModuleType) -> tuple[object, object, int]:
    found: tuple[object, object, int] = text.corpus(100)
    return found


def test_texts_are_padded_and_split_by_file(text: ModuleType, small: tuple[Any, Any, int]) -> None:
    train, test, vocabulary = small
    assert train.words.shape[1] == text.LENGTH
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(5))
    assert int(train.words.max()) < vocabulary
    rows = {tuple(row) for row in train.words.tolist()}
    assert len(rows) > 0.95 * len(train.words)  # few become alike without their rare words


def test_a_text_classifier_is_trained_exactly(
    text: ModuleType, small: tuple[Any, Any, int]
) -> None:
    train, _, vocabulary = small
    learner = text.train(train, vocabulary, "dgl+hpff", epochs=0, seed=0).double()
    inputs, labels = next(train.batches(8))
    assert not inputs["attention_mask"].all()
    assert {module.features for module in learner.partition[:-1]} == {Sequences()}
    assert [module.patches for module in learner.partition[:-1]] == [2] * 5
    assert check_gradients(learner, inputs, labels) == {}


@pytest.mark.long
def test_a_text_classifier_learns(text: ModuleType, small: tuple[Any, Any, int]) -> None:
    train, _, vocabulary = small
    before = text.train(train, vocabulary, "dgl+hpff", epochs=0, seed=0)
    after = text.train(train, vocabulary, "dgl+hpff", epochs=8, seed=0)
    assert text.error(before, train) > 60
    assert text.error(after, train) < 40
