"""The same learner on every rank, each with its share of a batch: gradients are averaged.

The gradients of a module are on their way to the other ranks as soon as it is done, while the step
goes on with the modules after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.parallel.agreement import check_same

_BUCKET_BYTES = 4 << 20


class _Bucket(NamedTuple):
    """Gradients on their way.

    Attributes:
        work: what is waited for.
        content: the gradients one after the other, and for each whether there is one.
        modules: whose they are.
    """

    work: Any
    content: Tensor
    modules: tuple[int, ...]


class DataParallel:
    """Averages a learner's gradients over the ranks of the process group, module by module.

    ::

        parallel = DataParallel(learner, on_reduced=step_module)
        for images, targets in my_share_of_the_data:
            learner.backward(images, targets, on_module_done=parallel.module_done)
            parallel.finish()

    Every rank then takes the same step. To accumulate gradients over several batches, give
    ``on_module_done`` with the last of them alone: nothing is sent before.

    Args:
        learner: as rank 0 has it: the other ranks take its weights and buffers.
        on_reduced: called with j when the gradients of module j are those of all ranks: it may
            step the module's optimizer and free them. By default nothing: step after ``finish``.
        bucket_bytes: small modules are reduced together until they have so many.

    Raises:
        UserError: there is no process group; the ranks have different learners.
    """

    def __init__(
        self,
        learner: LocalLearner,
        *,
        on_reduced: Callable[[int], None] = lambda _: None,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        if not dist.is_initialized():
            raise UserError(
                "there is no process group: call torch.distributed.init_process_group first, in "
                "processes started by torchrun, or let `hpff train RECIPE parallel=data` start them"
            )
        check_same("learners", f"{learner.settings} {learner.reach} {learner.partition}")
        self._parameters = [
            [parameter for parameter in parameters if parameter.requires_grad]
            for parameters in learner.module_parameters
        ]
        self._learner = learner
        self._on_reduced = on_reduced
        self._bucket_bytes = bucket_bytes
        self._waiting: list[int] = []
        self._sent: deque[_Bucket] = deque()
        self.share_state([*learner.parameters(), *learner.buffers()])

    def module_done(self, j: int) -> None:
        """Module ``j`` (from 1) has its final gradients here: send them.

        What has arrived of other modules meanwhile is taken in.
        """
        self._waiting.append(j)
        waiting = (p for i in self._waiting for p in self._parameters[i - 1])
        if sum(parameter.nbytes for parameter in waiting) >= self._bucket_bytes:
            self._send()
        while self._sent and self._sent[0].work.is_completed():
            self._take()

    def finish(self) -> None:
        """Wait until the gradients of all modules are those of all ranks."""
        if self._waiting:
            self._send()
        while self._sent:
            self._take()

    def share_buffers(self) -> None:
        """Take rank 0's buffers, such as the running statistics of BatchNorm; on every rank."""
        self.share_state(list(self._learner.buffers()))

    @staticmethod
    def share_state(tensors: Sequence[Tensor]) -> None:
        """Let tensors be those of rank 0; on every rank."""
        with torch.no_grad():
            for tensor in tensors:
                content = tensor.detach().contiguous()
                dist.broadcast(content, 0)
                tensor.copy_(content)

    def _send(self) -> None:
        modules, self._waiting = tuple(self._waiting), []
        content = _packed([p for j in modules for p in self._parameters[j - 1]])
        self._sent.append(_Bucket(dist.all_reduce(content, async_op=True), content, modules))

    def _take(self) -> None:
        bucket = self._sent.popleft()
        bucket.work.wait()
        _unpack(bucket.content, [p for j in bucket.modules for p in self._parameters[j - 1]])
        for j in bucket.modules:
            self._on_reduced(j)


def _packed(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients in one tensor, nothing counting as zeros, and for each parameter whether it is."""
    if not parameters:
        return torch.zeros(0)
    first = parameters[0]
    flat = [
        first.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1).to(first.dtype)
        for p in parameters
    ]
    there = [float(p.grad is not None) for p in parameters]
    return torch.cat((*flat, first.new_tensor(there)))


def _unpack(content: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters the mean of the ranks' gradients, unless no rank has one."""
    there = content[len(content) - len(parameters) :].tolist()
    gradients = content.div_(dist.get_world_size())
    start = 0
    for parameter, ranks in zip(parameters, there, strict=True):
        end = start + parameter.numel()
        if ranks:
            mean = gradients[start:end].view(parameter.shape).to(parameter.dtype)
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(mean)
        start = end
