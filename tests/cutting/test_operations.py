"""The operations after which one tensor is all that later ones need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpff import models
from hpff.cutting.local_modules import InnerPoint, OperationKey
from hpff.cutting.partition import partition
from hpff.cutting.trace import trace
from hpff.torch_support.fake_tensors import FakeTensors, fake_model


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 49, 10),
    )


def names(inner: tuple[InnerPoint, ...]) -> list[str]:
    return [point.operation.name.split(".")[1] for point in inner]


def test_the_points_of_a_chain_are_its_layers_but_those_that_are_overwritten() -> None:
    whole = partition(chain(), 1, torch.zeros(2, 3, 16, 16))[0]
    assert names(whole.inner) == ["convolution", "relu_", "max_pool2d_with_indices"]
    convolved, rectified, pooled = whole.inner
    assert convolved.output_bytes == rectified.output_bytes == 2 * 8 * 14 * 14 * 4
    assert pooled.output_bytes == 2 * 8 * 7 * 7 * 4
    assert convolved.saved == 0
    statistics = 2 * 8 * 4
    assert rectified.saved == 2 * convolved.output_bytes + statistics


class Residual(nn.Module):
    """Two residual branches one after the other, and a tensor that passes both."""

    def __init__(self, *, passing: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.passing = passing

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        middle = x + torch.tanh(self.first(x))
        end = middle + torch.tanh(self.second(middle))
        return end + x if self.passing else end + 1


def test_a_tensor_that_a_bypass_reads_too_forks() -> None:
    """Its gradient is a sum, of which a part is there early."""
    straight = partition(chain(), 1, torch.zeros(2, 3, 16, 16))[0]
    assert not any(point.forks for point in straight.inner)
    model = nn.Sequential(nn.Linear(8, 8), Residual(passing=False), nn.Linear(8, 10))
    first, _ = partition(model, ["0"], torch.zeros(2, 8))
    assert not first.forks, "tanh alone reads it"
    streams = partition(model, 1, torch.zeros(2, 8))[0].inner
    assert [p.operation.name.split(".")[1] for p in streams if p.forks] == ["tanh", "add"]


def test_a_residual_stream_can_be_taken_up_between_branches() -> None:
    """No submodule gives it; and a tensor that passes by is in the way."""

    def found(*, passing: bool) -> list[str]:
        model = nn.Sequential(Residual(passing=passing), nn.Linear(8, 10))
        return names(partition(model, ["0"], torch.zeros(4, 8))[0].inner)

    assert found(passing=False) == ["tanh", "add", "add"]
    assert found(passing=True) == ["tanh"]


def test_points_are_the_same_without_numbers() -> None:
    example = torch.zeros(2, 3, 32, 32)
    real = trace(models.create("resnet20"), example)
    mode = FakeTensors()
    fake = fake_model(lambda: models.create("resnet20"), mode)
    with mode:
        planned = trace(fake, torch.zeros(2, 3, 32, 32))
    assert planned.points == real.points
    assert planned.operations == real.operations
    assert len(real.points) > 9


@pytest.mark.parametrize("rectified", [False, True])
def test_what_leads_to_a_kept_tensor_alone_is_spared(rectified: bool) -> None:
    """A residual branch's last layer runs again for nothing but what its block gives."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

        def forward(self, x: Tensor) -> Tensor:
            joined = x + self.branch(x)
            return torch.relu(joined) if rectified else joined

    model = nn.Sequential(nn.Linear(8, 8), Residual(), Residual(), nn.Linear(8, 3))
    points = partition(model, 1, torch.zeros(5, 8))[0].inner
    written = 16 * 5 * 8 * 4  # sixteen times the bytes of what each operation gives
    last_layer = 2 * 5 * 32 * 8 + written
    rest = 2 * written if rectified else written
    end = "aten.relu.default" if rectified else "aten.add.Tensor"
    spared = [point.spared for point in points if point.operation.name == end]
    assert spared == [last_layer + rest, last_layer + rest]
    first_layer, branch = 2 * 5 * 8 * 8 + written, 2 * (2 * 5 * 32 * 8) + (4 + 4 + 1) * written
    works = [point.work for point in points if point.operation.name == end]
    assert works == [first_layer + branch + rest, first_layer + 2 * (branch + rest)]


def test_what_a_saved_tensor_is_made_of_and_the_work_that_takes() -> None:
    """By hand: a convolution's output, its ReLU's after BatchNorm, and a shortcut's sum."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 1, bias=False)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu_(self.norm(self.first(x)))
            return self.last(self.second(x) + x).mean((2, 3))

    saves = partition(Joined(), 1, torch.zeros(2, 3, 6, 6))[0].saves
    map_bytes, statistics = 2 * 4 * 36 * 4, 2 * 4 * 4
    large = [place for place, save in enumerate(saves) if save.size == map_bytes]
    convolved, rectified, added = (saves[place] for place in large)
    assert convolved.made_of == ()
    assert convolved.work == 2 * 2 * 36 * 3 * 4 + 16 * map_bytes
    assert rectified.made_of == (large[0],)
    assert rectified.work == 16 * (map_bytes + statistics + map_bytes), "BatchNorm, then ReLU"
    assert added.made_of == (large[1],)
    assert added.work == 2 * 2 * 36 * 4 * 4 + 16 * 2 * map_bytes


def test_an_operation_that_the_model_catches_leaves_the_others_in_place() -> None:
    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.last = nn.Linear(4 * 36, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x)).transpose(1, 2)
            try:
                flat = x.view(len(x), 4 * 36)
            except RuntimeError:
                flat = x.reshape(len(x), 4 * 36)
            return self.last(flat)

    (module,) = partition(Catching(), 1, torch.zeros(2, 3, 6, 6))
    maps = 2 * 4 * 36
    arithmetic = 2 * maps * 3 + 2 * 2 * 4 * 36 * 2
    assert module.work == arithmetic + 16 * 4 * (maps + maps + maps + 2 * 2), "and the copy's"


def test_what_writes_a_part_of_a_tensor_has_written_so_much() -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            filled = x.clone()
            for row in range(4):
                filled[row : row + 1] = x[row : row + 1].detach()
            return self.last(filled)

    (module,) = partition(Filling(), 1, torch.zeros(4, 8))
    assert module.work == 2 * 4 * 8 * 2 + 16 * 4 * (32 + 32 + 4 * 2)


def test_the_operation_that_makes_a_modules_output_is_known() -> None:
    first, last = partition(chain(), ["2"], torch.zeros(2, 3, 16, 16))
    assert first.maker == OperationKey("aten.relu_.default", 1)
    assert [save.size for save in first.saves if save.maker == first.maker] == [first.output_bytes]
    assert last.maker is None


def test_what_a_value_is_made_of_lies_in_its_own_module() -> None:
    """The first's tanh is made of what its output overwrites, which the second saves."""

    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return x.add_(torch.tanh(x))

    model = nn.Sequential(Adding(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    first, second = partition(model, ["0"], torch.zeros(3, 4))
    assert [save.made_of for save in first.saves] == [()]
    assert [save.made_of for save in second.saves] == [(), (0,)]


def coming(*layers: nn.Module, width: int = 8) -> list[tuple[int, int]]:
    """Of each value of two examples of 5 tokens: numbers of an example, and of what comes to it."""
    seen = trace(nn.Sequential(*layers, nn.Linear(width, 3)), torch.randn(2, 5, 8))
    return [(save.size // 40, save.coming // 40) for save in seen.saves]


def test_the_gradient_of_a_narrow_output_comes_to_a_wide_layers_input() -> None:
    """GELU keeps what it reads, so that its output is the second layer's alone."""
    assert coming(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) == [(32, 32), (32, 8), (8, 3)]


def test_an_output_that_its_own_operation_may_keep_sees_the_gradient_of_its_own_size() -> None:
    layers = nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)
    assert coming(*layers) == [(32, 32), (8, 3)]
    in_place = nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 8)
    assert coming(*in_place) == [(32, 32), (8, 3)]
    seen = trace(nn.Sequential(*layers), torch.randn(2, 8))
    assert [save.own for save in seen.saves] == [True]
    seen = trace(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), torch.randn(2, 8))
    assert [save.own for save in seen.saves] == [False, False]


def test_the_gradient_of_a_wide_output_comes_to_a_narrow_layers_input() -> None:
    narrow, wide, *_ = coming(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 32), width=32)
    assert (narrow, wide) == ((4, 4), (4, 32))


class Attention(nn.Module):
    """Of one head."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x[:, None].chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)


def test_attentions_own_result_is_there_beside_the_gradient_that_comes_to_it() -> None:
    """The sums of its rows, one number each, are there twice as well."""
    operands, sums, result, *_ = coming(nn.Linear(8, 24), Attention())
    assert operands == (24, 2 * (8 + 1))
    assert (sums, result) == ((1, 0), (8, 3))


class Parts(nn.Module):
    """Multiplies three parts of what a layer gave, each taken by its number."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (3, 8)).movedim(-2, 0).contiguous()
        return parts[0] * parts[1] * parts[2]


def test_the_gradient_of_a_part_is_made_as_large_as_the_whole() -> None:
    assert (24, 24 + 8) in coming(nn.Linear(8, 24), Parts())


def test_indices_carry_no_gradient() -> None:
    """A quarter of a map comes to what was pooled by two, and not its indices of eight bytes."""
    layers = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10)
    pooled, *_ = trace(nn.Sequential(*layers), torch.zeros(2, 3, 16, 16)).saves
    assert pooled.size == 2 * 8 * 14 * 14 * 4
    assert pooled.coming == pooled.size // 4
