"""Work that is launched as one CUDA graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpff.errors import UserError
from hpff.torch_support.out_of_memory import is_out_of_memory

Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], object]]]
_Looks = tuple[tuple[Any, ...], ...]
_WARM_UP = 3


class Replayed:
    """``function(*tensors)`` as one CUDA graph: small kernels no longer wait for the host.

    ``step = hpff.Replayed(step)``. Each call is one call: three with tensors of the same shapes,
    types and strides run as they are, the next is recorded and replayed, and the others are
    replayed. Calls with other tensors run as they are, and so does every call on the CPU. What a
    replay gives is overwritten by the next.

    The function must launch the same work every time, and must not wait for the device. Python that
    it runs has its effect in the recorded call alone, so that

    - a number that changes must be a tensor on the device: the learning rate, too;
    - gradients belong to the recorded call: the optimizer's ``step`` and ``zero_grad`` go inside;
    - the optimizer must be ``fused``, with such a rate (Adam and AdamW also ``capturable``).

    Args:
        function: of tensors on one device.
        record: given a call without arguments, gives what it returned and what runs its work; by
            default a CUDA graph, which the call is recorded into and not run.
    """

    def __init__(self, function: Callable[..., Any], record: Record | None = None) -> None:
        self._function = function
        self._record = record
        self._side: torch.cuda.Stream | None = None
        self._seen: Counter[_Looks] = Counter()
        self._looks: _Looks = ()
        self._held: tuple[Tensor, ...] | None = None
        self._result: Any = None
        self._replay: Callable[[], object] = lambda: None

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function gives.

        Raises:
            UserError: the function cannot be recorded.
        """
        on_cuda = bool(inputs) and all(tensor.is_cuda for tensor in inputs)
        if not on_cuda and self._record is None:
            return self._function(*inputs)
        looks = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
        if self._held is None:
            self._seen[looks] += 1
            if self._seen[looks] <= _WARM_UP:
                return self._beside(inputs) if on_cuda else self._function(*inputs)
            self._begin(inputs)
            self._looks = looks
        elif looks != self._looks:
            return self._function(*inputs)
        else:
            for held, new in zip(self._held, inputs, strict=True):
                held.copy_(new.detach())
        self._replay()
        return self._result

    def _begin(self, inputs: tuple[Tensor, ...]) -> None:
        held = tuple(tensor.detach().clone() for tensor in inputs)
        try:
            record = self._record or _record_graph
            self._result, self._replay = record(lambda: self._function(*held))
        except RuntimeError as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            raise UserError(
                f"a step cannot be recorded as a CUDA graph ({_first_reason(error)}); run it "
                "without (cuda_graph=false, no --cuda-graph)"
            ) from error
        self._held = held

    def _beside(self, inputs: tuple[Tensor, ...]) -> Any:
        """Run the function on a stream of its own, as libraries that it warms up expect."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        return result


def _record_graph(call: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return result, graph.replay


def _first_reason(error: BaseException) -> str:
    """What went wrong first: the end of a recording says only that something did."""
    while error.__context__ is not None:
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)
