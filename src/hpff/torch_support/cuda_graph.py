"""Work that is launched as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hpff.errors import UserError
from hpff.torch_support.out_of_memory import is_out_of_memory

Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], object]]]
_WARM_UP = 3


class Replayed:
    """``function(*tensors)`` as one CUDA graph: small kernels no longer wait for the host.

    ``step = hpff.Replayed(step)``. Each call is one call: the first three run as they are, the next
    is recorded and replayed, and the others are replayed. A call with tensors of other shapes,
    types or strides than the recorded ones runs as it is, and so does every call on the CPU. What a
    replay gives is overwritten by the next.

    The function must launch the same work every time, and must not wait for the device. Python that
    it runs has its effect in the recorded call alone, so that a number that changes from call to
    call must be a tensor on the device: the learning rate, too. An optimizer's step can be recorded
    if it is ``fused``, with such a rate (Adam and AdamW also ``capturable``).

    Args:
        function: of tensors on one device.
        record: given a call without arguments, gives what it returned and what runs its work; by
            default a CUDA graph, which the call is recorded into and not run.
    """

    def __init__(self, function: Callable[..., Any], record: Record | None = None) -> None:
        self._function = function
        self._record = record
        self._side: torch.cuda.Stream | None = None
        self._calls = 0
        self._inputs: tuple[Tensor, ...] | None = None
        self._result: Any = None
        self._replay: Callable[[], object] = lambda: None

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function gives.

        Raises:
            UserError: the function cannot be recorded.
        """
        on_cuda = all(tensor.is_cuda for tensor in inputs)
        if not on_cuda and self._record is None:
            return self._function(*inputs)
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._beside(inputs) if on_cuda else self._function(*inputs)
        if self._inputs is None:
            self._begin(inputs)
        elif not _alike(self._inputs, inputs):
            return self._function(*inputs)
        else:
            for held, new in zip(self._inputs, inputs, strict=True):
                held.copy_(new)
        self._replay()
        return self._result

    def _begin(self, inputs: tuple[Tensor, ...]) -> None:
        held = tuple(tensor.clone() for tensor in inputs)
        try:
            record = self._record or _record_graph
            self._result, self._replay = record(lambda: self._function(*held))
        except RuntimeError as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"a step cannot be recorded as a CUDA graph ({reason}); run it without "
                "(cuda_graph=false)"
            ) from error
        self._inputs = held

    def _beside(self, inputs: tuple[Tensor, ...]) -> Any:
        """Run the function on a stream of its own, as libraries that it warms up expect."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream())
        return result


def _record_graph(call: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return result, graph.replay


def _alike(held: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> bool:
    def looks(tensors: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
        return [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]

    return looks(held) == looks(new)
