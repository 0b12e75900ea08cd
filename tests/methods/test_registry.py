"""Methods of a user's own are known by name: from a decorator, a package, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
from torch import nn

from hpff import methods
from hpff.errors import UserError
from hpff.methods import AuxiliaryContext, Method, registry


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", {})
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


class Linear(Method):
    """A linear classifier."""

    def __init__(self, bias: bool = True) -> None:
        self.bias = bias

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(context.features[0], context.num_classes, bias=self.bias),
        )


def test_a_registered_method_is_known_by_name_with_its_settings() -> None:
    assert methods.register("linear")(Linear) is Linear
    made = methods.create("linear", bias=False)
    assert isinstance(made, Linear)
    assert made.bias is False
    assert methods.name_of(made) == "linear"
    assert methods.setting_names("linear") == ["bias"]
    assert ("linear", "A linear classifier.") in methods.names()
    with pytest.raises(UserError, match="has no setting 'width'"):
        methods.create("linear", width=3)


def test_names_that_are_taken_or_no_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"method 'dgl' is hpff\.methods\.dgl\.DGL already"):
        methods.register("dgl")(Linear)
    with pytest.raises(UserError, match="expected letters, digits"):
        methods.register("my method")
    with pytest.raises(UserError, match="expected a subclass of Method"):
        methods.register("net")(nn.Linear)  # type: ignore[type-var]


def test_registering_the_same_class_again_is_no_fault() -> None:
    methods.register("linear")(Linear)
    again = type("Linear", (Linear,), {"__module__": __name__, "__qualname__": "Linear"})
    methods.register("linear")(again)
    assert isinstance(methods.create("linear"), again)


def test_an_installed_package_offers_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("linear", f"{__name__}:Linear", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: Linear)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] * (group == registry.GROUP))
    assert isinstance(methods.create("linear"), Linear)


def test_a_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broken", "no_such_package:Method", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match="'broken' of an installed package"):
        methods.names()
