"""Blocks that take and return more than one tensor, and weights that several modules share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients
from hpff.cutting.partition import partition
from hpff.errors import UserError
from hpff.features import FeatureKind
from hpff.memory import AllocationCounter
from hpff.methods import AuxiliaryContext, Method

TOKENS = torch.randint(1, 11, (4, 6), generator=torch.Generator().manual_seed(0))
PADDED = {"tokens": TOKENS, "mask": torch.arange(6) < torch.tensor([[6], [4], [5], [2]])}
TARGETS = torch.tensor([0, 1, 2, 0])


class Pair(NamedTuple):
    hidden: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Record:
    hidden: Tensor
    weights: Tensor | None


class Output(OrderedDict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


PACKINGS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda hidden, _: hidden, lambda out: out),
    "tuple": (lambda hidden, weights: (hidden, weights, None), lambda out: out[0]),
    "tuple of one": (lambda hidden, _: (hidden,), lambda out: out[0]),
    "weights first": (lambda hidden, weights: (weights, hidden), lambda out: out[1]),
    "list": (lambda hidden, weights: [hidden, (weights,)], lambda out: out[0]),
    "named tuple": (Pair, lambda out: out.hidden),
    "dict": (lambda h, w: {"hidden": h, "weights": w}, lambda out: out["hidden"]),
    "dataclass": (lambda h, w: Record(h, w.detach()), lambda out: out.hidden),
    "mapping": (lambda h, w: Output(hidden=h, history=(w, h)), lambda out: out.hidden),
}


class Layer(nn.Module):
    """Attention and an MLP with residuals, and whatever ``pack`` makes of the result."""

    def __init__(self, width: int, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.pack = pack

    def forward(self, hidden: Tensor, *, padding: Tensor | None = None) -> Any:
        x = self.norm(hidden)
        mixed, weights = self.attention(x, x, x, key_padding_mask=padding)
        hidden = hidden + mixed
        return self.pack(hidden + self.mlp(hidden), weights)


class Text(nn.Module):
    """A small language model with a classifier, whose output matrix is its embedding."""

    def __init__(self, packing: str = "tuple", layers: int = 3) -> None:
        super().__init__()
        pack, self.unpack = PACKINGS[packing]
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer(8, pack) for _ in range(layers))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.classes = nn.Linear(11, 3)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = self.unpack(layer(hidden, padding=None if mask is None else ~mask))
        return {"states": hidden, "logits": self.classes(self.head(hidden).mean(1))}


def learner(model: nn.Module, example: Any, **settings: Any) -> LocalLearner:
    given = {"modules": 3, "example": example, "num_classes": 3}
    return LocalLearner(model.double(), **(given | {"patches": 1} | settings))


@pytest.mark.parametrize("packing", PACKINGS)
def test_blocks_that_return_more_than_a_tensor(packing: str) -> None:
    found = learner(Text(packing), PADDED, cascade=2)
    assert [m.cut for m in found.partition] == ["layers.0", "layers.1", None]
    assert {m.output_shape for m in found.partition[:-1]} == {(6, 8)}
    assert check_gradients(found, PADDED, TARGETS) == {}


@pytest.mark.parametrize("inputs", [TOKENS, (TOKENS,), (TOKENS, PADDED["mask"]), PADDED])
def test_a_tensor_a_tuple_and_a_dict_of_inputs(inputs: Any) -> None:
    assert check_gradients(learner(Text(), inputs), inputs, TARGETS) == {}


@pytest.mark.parametrize("cascade", [1, 2, 3])
def test_tied_embeddings(cascade: int) -> None:
    model = Text()
    found = learner(model, PADDED, cascade=cascade)
    tied = "embedding.weight"
    assert [tied in m.parameter_names for m in found.partition] == [True, False, True]
    assert check_gradients(found, PADDED, TARGETS) == {}

    finals: list[Tensor] = []

    def done(j: int) -> None:
        if any(p is model.head.weight for p in found.module_parameters[j - 1]):
            finals.append(model.head.weight.grad.clone())

    found.zero_grad()
    found.backward(PADDED, TARGETS, on_module_done=done)
    assert len(finals) == 1, "a shared weight is with one module"
    assert torch.equal(finals[0], model.head.weight.grad), "the one that is done last"


def test_a_tied_block_counts_all_its_uses() -> None:
    """The same gradient as that of a model with copies, summed."""

    class Repeats(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            for layer in self.layers[1:]:
                layer.load_state_dict(self.layers[0].state_dict())
            if tied:
                self.layers[2].weight = self.layers[0].weight
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.head(x)

    x = torch.randn(4, 8, dtype=torch.float64)
    models = [Repeats(tied) for tied in (True, False)]
    learners = []
    for model in models:
        torch.manual_seed(1)
        learners.append(learner(model, x))
        learners[-1].backward(x, TARGETS)
    tied, copies = models
    summed = copies.layers[0].weight.grad + copies.layers[2].weight.grad
    torch.testing.assert_close(tied.layers[0].weight.grad, summed)


class Boundary(nn.Module):
    """Two stages; ``how`` says what else than the first's output the second uses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = Splitting()
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        left, right = self.first(x)
        hidden = torch.tanh(self.second(left))
        if self.how == "both":
            hidden = hidden + right
        if self.how == "mask" and mask is not None:
            hidden = hidden * mask
        return self.head(torch.tanh(self.third(hidden)))


class Splitting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.linear(x).chunk(2, -1)


X = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_one_half_of_an_output_carries_on() -> None:
    found = learner(Boundary("left"), X, modules=["first"])
    assert found.partition[0].path == (0,)
    assert check_gradients(found, X, TARGETS) == {}


@pytest.mark.parametrize(
    ("how", "inputs", "cut", "named"),
    [
        (
            "both",
            X,
            "first",
            ["made in 'first'", "let a submodule", "cuts that work: first.linear, third"],
        ),
        ("mask", (X, X.clone().requires_grad_()), "second", ["an input that requires a gradient"]),
    ],
)
def test_what_reaches_past_a_cut_is_named(
    how: str, inputs: Any, cut: str, named: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        learner(Boundary(how), inputs, modules=[cut])
    for words in named:
        assert words in str(caught.value)


def test_a_residual_sum_in_the_models_own_forward_is_told_where_it_belongs() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = x + layer(x).relu()
            return self.head(x)

    with pytest.raises(UserError, match=r"let a submodule compute .*x \+ block\(x\)"):
        partition(Sums(), 4, torch.randn(4, 8))


def test_a_mask_without_gradient_is_no_leak() -> None:
    inputs = (X, torch.rand(4, 4, dtype=torch.float64))
    found = learner(Boundary("mask"), inputs, modules=["first", "second"])
    assert check_gradients(found, inputs, TARGETS) == {}


def test_features_without_the_batch_first_are_refused() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.head(x.mean(0))

    sequences = torch.randn(4, 5, 8)
    for modules in (2, ["layers.0"]):
        with pytest.raises(UserError, match=r"\(5×4×8 on the example\) does not have the batch"):
            partition(TimeFirst(), modules, sequences)


def test_a_block_that_returns_something_else_later_is_named() -> None:
    class Changes(Text):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
            for layer in self.layers:
                layer.pack = PACKINGS["tuple" if mask is None else "dict"][0]
            self.unpack = PACKINGS["tuple" if mask is None else "dict"][1]
            return super().forward(tokens, mask)

    with pytest.raises(UserError, match=r"'layers\.0' returns no tensor where it did"):
        learner(Changes(), TOKENS).backward(PADDED, TARGETS)


def test_attention_weights_that_a_model_collects_hold_no_graph() -> None:
    class Collects(Text):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
            hidden, self.weights = self.embedding(tokens), []
            for layer in self.layers:
                hidden, weights, _ = layer(hidden)
                self.weights.append(weights)
            return {"logits": self.classes(self.head(hidden).mean(1))}

    model = Collects()
    learner(model, TOKENS).backward(TOKENS, TARGETS)
    assert [weights.requires_grad for weights in model.weights] == [False, False, True]


def test_activations_do_not_grow_with_depth_where_blocks_return_tuples() -> None:
    peaks = []
    for layers in (6, 12):
        found = learner(Text(layers=layers), TOKENS, modules=layers)
        found.backward(TOKENS, TARGETS)
        with AllocationCounter() as counter:
            counter.track(t for p in found.parameters() for t in (p, p.grad))
            standing = counter.current
            found.backward(TOKENS, TARGETS)
        peaks.append(counter.peak - standing)
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.fixture
def uneven() -> nn.Sequential:
    """Six blocks: the first two save the most, the last three learn the most."""
    widths = [(3, 8, 1), (8, 8, 1), (8, 8, 8), (8, 16, 1), (16, 16, 1), (16, 16, 1)]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.Tanh(), nn.Conv2d(b, b, 1), nn.Tanh())
        for a, b, stride in widths
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    return nn.Sequential(*blocks, head)


def test_balance(uneven: nn.Sequential) -> None:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    cuts, heaviest = {}, {}
    for balance in ("blocks", "parameters", "memory"):
        found = learner(uneven, images, modules=3, balance=balance)
        cuts[balance] = [m.cut for m in found.partition]
        heaviest[balance] = (
            max(m.parameters for m in found.partition),
            max(m.saved for m in found.partition),
        )
        assert check_gradients(found, images, TARGETS) == {}
    assert cuts == {
        "blocks": ["2", "4", None],
        "parameters": ["3", "4", None],
        "memory": ["0", "1", None],
    }
    assert heaviest["parameters"][0] == min(parameters for parameters, _ in heaviest.values())
    assert heaviest["memory"][1] == min(saved for _, saved in heaviest.values())


def test_what_a_module_saves_is_what_its_graph_holds() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    found = partition(model, ["1", "3"], torch.randn(5, 4))
    assert [m.saved for m in found] == [5 * 4 * 4, 5 * 4 * 4, 0], "each tanh saves its output"


def test_wrong_balance_is_named() -> None:
    with pytest.raises(UserError, match="balance: is 'bytes', expected blocks or parameters"):
        learner(Text(), TOKENS, balance="bytes")


class Positions(FeatureKind):
    """A sequence (B, L, D) as a map of one row, so that nothing is averaged over positions."""

    kind = "positions"

    def features_shape(self, shape: tuple[int, ...], sides: object) -> tuple[int, ...]:
        return (shape[1], 1, shape[0])

    def features(self, output: Tensor, pieces: int, sides: object, mask: Tensor | None) -> Tensor:
        return output.mT.unsqueeze(2)


def test_a_language_model() -> None:
    """Logits (B, N, V) by the tied embedding, a loss for every position at every module."""

    class Language(Text):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
            return {"logits": self.head(super().forward(tokens, mask)["states"])}

    class Following(Method):
        def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
            return nn.Conv2d(context.features[0], context.num_classes, 1)

        def loss(self, outputs: Tensor, targets: Tensor, context: AuxiliaryContext) -> Tensor:
            return following(outputs.squeeze(2).mT, targets)

    def following(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    found = learner(
        Language(),
        TOKENS,
        num_classes=11,
        method=Following(),
        criterion=following,
        features=Positions(),
    )
    assert check_gradients(found, TOKENS, TOKENS) == {}
