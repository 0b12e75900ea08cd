"""A function of tensors as one CUDA graph: its kernels are launched together."""

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
    """Calls ``function(*tensors)`` a few times as it is, and then replays what it launched.

    Each call is one call: the first three run as they are, the next is recorded and replayed, and
    the others are replayed. A call with tensors of other shapes, types or strides than the recorded
    ones runs as it is. What a replay gives is overwritten by the next.

    The function must launch the same work every time, and must not wait for the device. Python
    that it runs has its effect in the recorded call alone. A number that changes from call to call
    must be a tensor on the device.

    Args:
        function: of tensors on one CUDA device.
        record: given a call without arguments, gives what it returned and what runs its work; by
            default a CUDA graph, which the call itself is recorded into and not run.
    """

    def __init__(self, function: Callable[..., Any], record: Record | None = None) -> None:
        self._function = function
        self._record = record or _record_graph
        self._side = None if record else torch.cuda.Stream()
        self._calls = 0
        self._inputs: tuple[Tensor, ...] | None = None
        self._result: Any = None
        self._replay: Callable[[], object] = lambda: None

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function gives.

        Raises:
            UserError: the function cannot be recorded.
        """
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._beside(inputs)
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
            self._result, self._replay = self._record(lambda: self._function(*held))
        except RuntimeError as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"cuda_graph: a step cannot be recorded as a CUDA graph ({reason}); use "
                "cuda_graph=false"
            ) from error
        self._inputs = held

    def _beside(self, inputs: tuple[Tensor, ...]) -> Any:
        """Run the function on a stream of its own, as libraries that it warms up expect."""
        if self._side is None:
            return self._function(*inputs)
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
