"""The local modules of a model, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import NamedTuple, overload

import torch

from hpff.features import FeatureKind, Vectors
from hpff.torch_support.model_io import Path


class OperationKey(NamedTuple):
    """An operation inside a local module: its name, and which of that name it is, from 1."""

    name: str
    number: int


class Save(NamedTuple):
    """A tensor that a local module saves for its backward.

    Attributes:
        size: in bytes, on the example.
        maker: the operation that made it; None where it was not made in the local module.
        made_of: the places of the tensors among the module's own that lead to it past no other.
        work: that leads from these to it.
        coming: bytes that come to the operations which may save it, in their backward: of a
            gradient, and of attention's own result.
        own: whether the operation that made it needs it in its own backward, as a ReLU does.
    """

    size: int
    maker: OperationKey | None = None
    made_of: tuple[int, ...] = ()
    work: int = 0
    coming: int = 0
    own: bool = False


@dataclass(frozen=True)
class InnerPoint:
    """An operation after which one tensor is all that the rest of a local module needs.

    Attributes:
        leaf: which of its outputs the tensor is.
        output_bytes: of the tensor, on the example.
        saved: bytes that the local module saves for its backward up to here, on the example.
        forks: whether several operations read it, so that its gradient is a sum.
        spared: work that no backward needs again if the tensor is kept.
        work: of the local module's forward up to here.
    """

    operation: OperationKey
    leaf: int
    output_bytes: int
    saved: int
    forks: bool = False
    spared: int = 0
    work: int = 0


@dataclass(frozen=True)
class LocalModule:
    """One local module.

    Attributes:
        index: j, from 1.
        cut: name of the submodule whose output ends it; None for the last module.
        submodules: the blocks that it runs, in order.
        block_shapes: of the output of each, the batch left out.
        parameter_names: of the backbone's parameters that it uses.
        parameters: how many numbers these are.
        output_shape: of its output on the example, the batch left out. Where the submodule returns
            several tensors, the output is the one that carries everything on.
        dtype, device: of its output.
        features: what its output is: a map, tokens, a sequence or a vector.
        path: where in what the submodule returns the output lies; () where it returns a tensor.
        saved: bytes that its forward saves for its backward, on the example.
        saves: the tensors that these are, in order.
        work: of its forward, on the example: arithmetic, and bytes written.
        output_bytes: of its output, on the example.
        maker: the operation that makes its output; None for the last module.
        forks: whether several operations read its output.
        patches: n in force at its output (n×n patches, or n pieces of a sequence); 1 where PFF is
            off or does not fit.
        overwritten: whether the next module modifies the output in place.
        read_later: whether the output's content is read after the next module, which autograd
            does not see.
        shares: whether something else that it computes is read after it, such as a mask.
        inner: where its forward could be taken up again, in order.
        passing: submodules inside whose output is not read after the module, in order, and where
            in what they return it lies.
    """

    index: int
    cut: str | None
    submodules: tuple[str, ...]
    block_shapes: tuple[tuple[int, ...], ...]
    parameter_names: tuple[str, ...]
    parameters: int
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    features: FeatureKind = field(default_factory=Vectors)
    path: Path = ()
    saved: int = 0
    output_bytes: int = 0
    maker: OperationKey | None = None
    forks: bool = False
    patches: int = 1
    overwritten: bool = False
    read_later: bool = False
    shares: bool = False
    saves: tuple[Save, ...] = ()
    work: int = 0
    inner: tuple[InnerPoint, ...] = ()
    passing: tuple[tuple[str, Path], ...] = ()

    @property
    def samples(self) -> int:
        """How many the example has."""
        return self.output_bytes // (prod(self.output_shape) * self.dtype.itemsize)

    @cached_property
    def saved_before(self) -> list[int]:
        """Bytes that its forward has saved before each of its saves, and at its end."""
        return list(accumulate((save.size for save in self.saves), initial=0))

    @cached_property
    def needed_by_makers(self) -> frozenset[tuple[int, OperationKey | None]]:
        """Sizes and makers of what it saves that the operation which made it needs itself."""
        return frozenset((save.size, save.maker) for save in self.saves if save.own)

    @property
    def end(self) -> str:
        """The name of the submodule whose output ends it; not for the last module."""
        assert self.cut is not None, "the last module ends with the model"
        return self.cut


@dataclass(frozen=True)
class Partition(Sequence[LocalModule]):
    """The K local modules of a model, in order."""

    modules: tuple[LocalModule, ...]

    @overload
    def __getitem__(self, index: int) -> LocalModule: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LocalModule, ...]: ...
    def __getitem__(self, index: int | slice) -> LocalModule | tuple[LocalModule, ...]:
        return self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[LocalModule]:
        return iter(self.modules)

    def with_features(self, features: Sequence[FeatureKind], patches: Sequence[int]) -> Partition:
        """The same cut with the features and n in force at each module's output but the last."""
        described = tuple(
            replace(m, features=kind, patches=n)
            for m, kind, n in zip(self.modules, features, patches, strict=False)
        )
        return Partition((*described, self.modules[-1]))

    def __str__(self) -> str:
        rows = [("module", "ends after", "parameters", "output", "features", "patches")]
        for m in self.modules:
            shape = "×".join(map(str, m.output_shape))
            kind, n = str(m.features) if m.cut else "", str(m.patches)
            cut = f"{n}×{n}" if m.features.kind in ("map", "tokens") else n
            name = m.cut or "the head"
            rows.append((str(m.index), name, f"{m.parameters:,}", shape, kind, cut))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
