"""What operations need in their backwards, by their names: autograd does not say so beforehand."""

from __future__ import annotations

from typing import Any

_ATTENTION = "_scaled_dot_product"
_PARTS = {"select", "slice"}
_NEED_THEIR_RESULT = {
    "relu",
    "threshold",
    "leaky_relu_",
    "elu_",
    "celu_",
    "selu",
    "sigmoid",
    "tanh",
    "exp",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "_softmax",
    "_log_softmax",
}


def needs_its_result(operation: str) -> bool:
    """Whether an operation's backward reads what the operation gave."""
    name = operation.split(".")[1]
    return name in _NEED_THEIR_RESULT or name.removesuffix("_") in _NEED_THEIR_RESULT


def comes_beside(function: Any, output: Any, flowing: int, size: int) -> int:
    """Bytes that come in an operation's backward, beside a gradient of the size of what it read.

    Args:
        function: the operation.
        output: of it.
        flowing: bytes of its gradient.
        size: of what it read.
    """
    name = function.overloadpacket.__name__
    if name.startswith(_ATTENTION):
        return 2 * flowing  # its result stays beside what it read
    if name in _PARTS:
        return size + int(output.nbytes)  # each part's gradient is made as large as the whole
    return flowing
