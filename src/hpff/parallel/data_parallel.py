"""The same learner on every rank, each with its share of a batch: gradients are averaged.

The gradients of a module are on their way to the other ranks as soon as it is done, while the step
goes on with the modules after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpff.cutting.trace import is_compiled
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.parallel.agreement import check_same, described
from hpff.parallel.batch_statistics import batch_statistics
from hpff.parallel.groups import check_one_stream
from hpff.parallel.messages import as_bytes

BatchNormStatistics = Literal["own", "synchronized"]

BUCKET_BYTES = 4 << 20


class _Bucket(NamedTuple):
    """Gradients on their way.

    Attributes:
        work: what is waited for.
        content: the gradients one after the other, and for each whether there is one.
        modules: whose they are.
        parameters: likewise, in order.
    """

    work: Any
    content: Tensor
    modules: tuple[int, ...]
    parameters: Sequence[nn.Parameter]


class DataParallel:
    """Averages a learner's gradients over the ranks of a process group, module by module.

    ::

        parallel = DataParallel(learner, on_reduced=step_module)
        for images, targets in my_share_of_the_data:
            learner.backward(images, targets, on_module_done=parallel.module_done)
            parallel.finish()

    Every rank then takes the same step. To accumulate gradients over several batches, give
    ``on_module_done`` with the last of them alone: nothing is sent before.
    Parameters may be frozen or thawed between steps, on every rank the same.

    BatchNorm normalizes by a rank's own share of the batch, or (``batch_norm="synchronized"``) by
    all ranks' shares together, in the model and in auxiliary networks: then shares may be of
    different sizes, and the gradients are those of the whole batch, if ``scale`` of a rank's
    ``learner.backward`` is its number of samples over the mean number.

    Args:
        learner: as the group's first rank has it: the others take its weights and buffers.
        on_reduced: called with j when the gradients of module j are those of all ranks: it may
            step the module's optimizer and free them. By default nothing: step after ``finish``.
        bucket_bytes: small modules are reduced together until they have so many.
        group: the ranks that average, such as a dimension of a mesh; None: all.
        modules: those whose gradients are averaged (from 1); None: all.
        batch_norm: "own" or "synchronized".

    Raises:
        UserError: there is no process group; the ranks have different learners; statistics are to
            be synchronized in compiled blocks; modules work on several streams.
    """

    def __init__(
        self,
        learner: LocalLearner,
        *,
        on_reduced: Callable[[int], None] = lambda _: None,
        bucket_bytes: int = BUCKET_BYTES,
        group: dist.ProcessGroup | None = None,
        modules: Collection[int] | None = None,
        batch_norm: BatchNormStatistics = "own",
    ) -> None:
        if not dist.is_initialized():
            raise UserError(
                "there is no process group: call torch.distributed.init_process_group first, in "
                "processes started by torchrun, or let `hpff train RECIPE parallel=data` start them"
            )
        check_one_stream(learner)
        check_same("learners", f"{described(learner)} {batch_norm}", group)
        everything = enumerate(learner.module_parameters, start=1)
        own = {j: each for j, each in everything if modules is None or j in modules}
        self._parameters = own
        self._group = group
        self._learner = learner
        self._on_reduced = on_reduced
        self._bucket_bytes = bucket_bytes
        self._waiting: list[int] = []
        self._sent: deque[_Bucket] = deque()
        self.share_state([*(p for each in own.values() for p in each), *learner.buffers()])
        if batch_norm == "synchronized":
            _synchronize(learner, group)

    def module_done(self, j: int) -> None:
        """Module ``j`` (from 1) has its final gradients here: send them.

        What has arrived of other modules meanwhile is taken in.
        """
        self._waiting.append(j)
        waiting = self._trained(self._waiting)
        if sum(parameter.nbytes for parameter in waiting) >= self._bucket_bytes:
            self.send()
        while self._sent and self._sent[0].work.is_completed():
            self._take()

    def finish(self) -> None:
        """Wait until the gradients of all modules are those of all ranks."""
        self.send()
        while self._sent:
            self._take()

    def wait_for(self, modules: Collection[int]) -> None:
        """Wait until the gradients of these modules are those of all ranks, if they were done."""
        if not set(modules).isdisjoint(self._waiting):
            self.send()
        while any(not set(modules).isdisjoint(bucket.modules) for bucket in self._sent):
            self._take()

    def send(self) -> None:
        """Send the gradients of small modules that wait for more."""
        if not self._waiting:
            return
        modules, self._waiting = tuple(self._waiting), []
        parameters = self._trained(modules)
        content = _packed(parameters)
        work = dist.all_reduce(content, group=self._group, async_op=True)
        self._sent.append(_Bucket(work, content, modules, parameters))

    def share_buffers(self) -> None:
        """Take the first rank's buffers, such as BatchNorm's statistics; on every rank."""
        self.share_state(list(self._learner.buffers()))

    def close(self) -> None:
        """The learner's BatchNorm is its own again."""
        self._learner.around_step = nullcontext

    def share_state(self, tensors: Sequence[Tensor]) -> None:
        """Let tensors be those of the first rank; on every rank."""
        with torch.no_grad():
            for tensor in tensors:
                content = tensor.detach().resolve_conj().resolve_neg().contiguous()
                dist.broadcast(as_bytes(content.view(-1)), group=self._group, group_src=0)
                tensor.copy_(content)

    def _trained(self, modules: Sequence[int]) -> list[nn.Parameter]:
        """Parameters of modules that are not frozen now: a run may thaw or freeze some."""
        return [p for j in modules for p in self._parameters[j] if p.requires_grad]

    def _take(self) -> None:
        bucket = self._sent.popleft()
        bucket.work.wait()
        _unpack(bucket.content, bucket.parameters, dist.get_world_size(self._group))
        for j in bucket.modules:
            self._on_reduced(j)


def _synchronize(learner: LocalLearner, group: dist.ProcessGroup | None) -> None:
    """Let a learner's steps normalize by the statistics of a group's ranks."""
    if any(is_compiled(module) for module in learner.modules()):
        raise UserError(
            "compiled blocks cannot normalize by the statistics of all ranks; do not compile, or "
            "use batch_norm='own' (sync_batch_norm=false in a recipe)"
        )
    if dist.get_world_size(group) > 1:
        learner.around_step = partial(batch_statistics, group)


def _packed(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients in one tensor, nothing counting as zeros, and for each parameter whether it is.

    The tensor is of the widest of their types, so that none is rounded.
    """
    if not parameters:
        return torch.zeros(0)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters))
    flat = [
        p.new_zeros(p.numel(), dtype=dtype) if p.grad is None else p.grad.reshape(-1).to(dtype)
        for p in parameters
    ]
    there = [float(p.grad is not None) for p in parameters]
    return torch.cat((*flat, flat[0].new_tensor(there)))


def _unpack(content: Tensor, parameters: Sequence[nn.Parameter], world: int) -> None:
    """Give parameters the mean of the ranks' gradients, unless no rank has one."""
    there = content[len(content) - len(parameters) :].tolist()
    gradients = content.div_(world)
    start = 0
    for parameter, ranks in zip(parameters, there, strict=True):
        end = start + parameter.numel()
        if ranks:
            mean = gradients[start:end].view(parameter.shape).to(parameter.dtype)
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(mean)
        start = end
