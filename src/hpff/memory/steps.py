"""Training steps to plan or to measure: a workload, and the strategy by which it is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import methods, models
from hpff.cutting.balance import Balance
from hpff.cutting.local_modules import Partition
from hpff.cutting.partition import partition
from hpff.engine.phase import Phase
from hpff.engine.reach import Cascade
from hpff.errors import UserError, did_you_mean
from hpff.learner import OWN_HEAD_WEIGHT, LocalLearner
from hpff.memory.checkpointing import Block, chain, checkpointed, segments_of
from hpff.memory.ledger import What
from hpff.methods import Criterion, TaskName, criterion_of
from hpff.methods.criteria import ChunkedCrossEntropy
from hpff.presets import PRESETS
from hpff.schema import Component
from hpff.settings import BASELINE, LocalSettings
from hpff.torch_support.model_io import outputs_of

Precision = Literal["fp32", "bf16"]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "plain-sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
}


@dataclass(frozen=True)
class Workload:
    """What is trained, and on what.

    Attributes:
        model: a name that ``hpff.models.create`` knows, or a function that makes a model.
        modules: K, or the names of the submodules after which to cut; None for as many modules
            as the model has blocks.
        balance: for a number K, how to share out the blocks.
        image: shape (C, H, W) of one image.
        num_classes: of the task.
        optimizer: a key of ``OPTIMIZERS``.
        precision: "bf16" runs forward and losses under autocast.
        step_per_module: whether local modules are stepped, and their gradients freed, one by one
            as they are done.
        chunk: how many samples the loss looks at together; None for all.
    """

    model: str | Callable[[], nn.Module]
    modules: int | tuple[str, ...] | None = None
    balance: Balance = "blocks"
    image: tuple[int, ...] = (3, 32, 32)
    num_classes: int = 10
    optimizer: str = "sgd"
    precision: Precision = "fp32"
    step_per_module: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        if len(self.image) != 3 or not all(_is_count(size) for size in self.image):
            raise UserError(f"image is {self.image!r}; expected three sizes C, H, W of at least 1")
        if not _is_count(self.num_classes):
            raise UserError(f"num_classes is {self.num_classes!r}; expected 1 or more")
        for name, value, known in (
            ("optimizer", self.optimizer, tuple(OPTIMIZERS)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in known:
                raise UserError(
                    f"{name} is {value!r}; expected {' or '.join(known)}"
                    f"{did_you_mean(str(value), known)}"
                )

    @property
    def model_name(self) -> str:
        """The model's name, or that of the function that makes it."""
        return (
            self.model if isinstance(self.model, str) else getattr(self.model, "__name__", "model")
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "model": self.model_name}

    def build(self) -> nn.Module:
        """The model, with random weights; one by name is made for images of this size."""
        if not isinstance(self.model, str):
            model = self.model()
            if not isinstance(model, nn.Module):
                raise UserError(f"{self.model_name}() gives no nn.Module, but {model!r:.60}")
            return model
        channels, height, width = self.image
        settings = models.sized(self.model, height, width)
        return models.create(self.model, self.num_classes, in_channels=channels, **settings)

    def cut(self, model: nn.Module, example: Tensor) -> Partition:
        """A model's local modules."""
        return partition(model, self.modules, example, balance=self.balance)

    def with_published(self, settings: LocalSettings, modules: int) -> LocalSettings:
        """Settings whose method has what was published for a network by name and K modules."""
        if not isinstance(self.model, str) or not isinstance(settings.method, Component):
            return settings
        name, given = settings.method.name, settings.method.settings
        data = "cifar10" if max(self.image[1:]) <= 32 else "imagenet"
        if models.is_dense(self.model):
            data = "cityscapes"
        published = methods.published(name, network=self.model, data=data, modules=modules)
        return replace(settings, method=Component(name, {**published, **given}))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Strategy:
    """How a workload is trained: in local modules, or by backprop, perhaps with checkpointing.

    Attributes:
        settings: of local learning; where its modules are None, the workload says them.
        segment: of backprop: how many blocks are recomputed together; 0 for none.
    """

    settings: LocalSettings
    segment: int = 0

    @classmethod
    def of(
        cls,
        method: str = BASELINE,
        cascade: Cascade = 1,
        patches: int = 1,
        *,
        segment: int = 0,
        **settings: Any,
    ) -> Strategy:
        """A strategy by its method's name, k and n, and other settings of local learning."""
        local = LocalSettings(method=method, cascade=cascade, patches=patches, **settings)  # type: ignore[arg-type]
        return cls(local, segment)

    @classmethod
    def labeled(cls, label: str, cascade: Cascade, patches: int) -> Strategy:
        """A strategy by its label, such as "dgl+hilo", with k and n where the label has them."""
        return cls(LocalSettings.from_label(label, cascade=cascade, patches=patches))

    def with_settings(self, **settings: Any) -> Strategy:
        """The same but for some settings of local learning."""
        return replace(self, settings=replace(self.settings, **settings))

    def __str__(self) -> str:
        if self.segment:
            return "bp+checkpointing" + (f" ({self.segment})" if self.segment > 0 else "")
        preset = self.settings.preset_name()
        usual = "never" if preset is None else PRESETS[preset]["recompute"]
        recompute = self.settings.recompute
        name = preset or self.settings.label()
        streams = self.settings.streams
        name += "" if recompute == usual else f" recompute={recompute}"
        room = self.settings.recompute_budget
        name += "" if room == 1 else f" budget={room:g}"
        return name + ("" if streams == 1 else f" streams={streams}")

    @property
    def is_plain_backprop(self) -> bool:
        """Whether the model's own forward and one backward are all there is, with checkpoints."""
        return self.settings.is_backprop and self.settings.recompute == "never"

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**self.settings.to_plain(), "segment": self.segment}


def take_whole_step(optimizer: torch.optim.Optimizer) -> None:
    """Step an optimizer."""
    optimizer.step()


class TrainingStep:
    """A workload trained by one strategy: everything that a step needs, ready to run.

    Args:
        model: what ``workload.build()`` gave, on the device where it is to be trained.
        first_step: takes each optimizer's first step, which makes its state.

    Attributes:
        model: the backbone.
        partition: its cut.
        trained: what holds all the parameters: the learner, or the model itself.
        phase: what the step is doing; in backprop only while it is ``watched``.
        take_step: how an optimizer's step is taken.
        optimizers: of each module where it is stepped alone, or one of all.
    """

    watched = False
    take_step: Callable[[torch.optim.Optimizer], object]

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        strategy: Strategy,
        *,
        first_step: Callable[[torch.optim.Optimizer], object] = take_whole_step,
    ) -> None:
        self._precision = workload.precision
        self.model = model.train()
        example = torch.zeros(2, *workload.image, device=next(model.parameters()).device)
        cut = workload.cut(self.model, example)
        self._is_dense = len(cut[-1].output_shape) == 3
        self._image = workload.image
        chunk = None if self._is_dense else workload.chunk
        self._criterion: Criterion = (
            F.cross_entropy if chunk is None else ChunkedCrossEntropy(chunk)
        )
        if strategy.is_plain_backprop:
            self._prepare_backprop(cut, strategy, example)
        else:
            self._prepare_local(cut, workload, strategy, example)
        self.take_step = take_whole_step
        self._make_optimizers(workload, first_step)

    @property
    def task(self) -> TaskName:
        """A segmentation where the model's output are maps."""
        return "segmentation" if self._is_dense else "classification"

    def targets_of(self, batch: int) -> tuple[int, ...]:
        """The shape of a batch's targets."""
        return (batch, *self._image[1:]) if self._is_dense else (batch,)

    def recomputing(self, segments: Sequence[Sequence[Block]]) -> TrainingStep:
        """A step of backprop, in which these blocks are recomputed together."""
        other = copy.copy(self)
        other._segments, other._fill = segments, other._backprop
        return other

    def _prepare_backprop(self, cut: Partition, strategy: Strategy, example: Tensor) -> None:
        self.trained: nn.Module = self.model
        self.partition = cut
        self._loss = criterion_of(self.task, self._criterion, ignore_index=-100)
        self.phase = Phase()
        self._segments: Sequence[Sequence[Block]] = ()
        if strategy.segment:
            self._segments = segments_of(chain(self.model, example), strategy.segment)
        self._fill: Callable[[Tensor, Tensor], object] = self._backprop

    def _prepare_local(
        self, cut: Partition, workload: Workload, strategy: Strategy, example: Tensor
    ) -> None:
        names = tuple(module.cut for module in cut if module.cut)
        settings = replace(workload.with_published(strategy.settings, len(cut)), modules=names or 1)
        learner = LocalLearner.from_settings(
            self.model,
            settings,
            example=example,
            num_classes=workload.num_classes,
            criterion=self._criterion,
            task=self.task,
        )
        self.trained, self.partition, self.phase = learner, learner.partition, learner.phase
        done = self.step_module if workload.step_per_module else None
        self._fill = lambda images, targets: learner.backward(images, targets, on_module_done=done)

    def fill_gradients(self, images: Tensor, targets: Tensor) -> None:
        """Forward and every backward."""
        with self.autocast(images.device):
            self._fill(images, targets)

    def finish(self) -> None:
        """The optimizer's step; the gradients are gone."""
        for optimizer in self.optimizers:
            self.take_step(optimizer)
            optimizer.zero_grad()

    def standing(self) -> Iterator[tuple[What, Tensor]]:
        """What is there before a step: parameters, buffers, the optimizers' state."""
        yield from (("parameters", parameter) for parameter in self.trained.parameters())
        yield from (("buffers", buffer) for buffer in self.trained.buffers())
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        for state in states:
            yield from (("optimizer", t) for t in state.values() if isinstance(t, Tensor))

    def _make_optimizers(
        self, workload: Workload, first_step: Callable[[torch.optim.Optimizer], object]
    ) -> None:
        """Optimizers with their state, as it is from the second step on."""
        groups = [list(self.trained.parameters())]
        if workload.step_per_module and isinstance(self.trained, LocalLearner):
            groups = self.trained.module_parameters
        make = OPTIMIZERS[workload.optimizer]
        self.optimizers = [make([{"params": group}]) for group in groups]
        zeros: dict[object, Tensor] = {}  # shared: no step changes a gradient
        for parameter in self.trained.parameters():
            if parameter.requires_grad:
                like = parameter.dtype, parameter.device, parameter.shape, parameter.stride()
                if like not in zeros:
                    zeros[like] = torch.zeros_like(parameter)
                parameter.grad = zeros[like]
        for optimizer in self.optimizers:
            first_step(optimizer)
            optimizer.zero_grad()

    def step_module(self, j: int) -> None:
        """The optimizer's step of one module (from 1); its gradients are gone."""
        self.take_step(self.optimizers[j - 1])
        self.optimizers[j - 1].zero_grad()

    def _backprop(self, images: Tensor, targets: Tensor) -> None:
        cuts = [(m.index, self.model.get_submodule(m.cut)) for m in self.partition if m.cut]
        follow = _followed(cuts if self.watched else [], self.phase)
        with checkpointed(self._segments), follow:
            self.phase.set("forward", 1)
            logits, own_head = outputs_of(self.model(images))
            self.phase.set("auxiliary", len(self.partition))
            loss = self._loss(logits, targets)
            if own_head is not None:
                loss = loss + OWN_HEAD_WEIGHT * self._loss(own_head, targets)
            self.phase.set("complete", len(self.partition))
        loss.backward()
        self.phase.set("", 0)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a step runs in."""
        if self._precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return contextlib.nullcontext()


@contextlib.contextmanager
def _followed(cuts: Iterable[tuple[int, nn.Module]], phase: Phase) -> Iterator[None]:
    """Keep the phase up to date in a forward inside, and in its backward."""

    def follow(j: int, output: Tensor) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a segment that is recomputed
        phase.set("forward", j + 1)
        if output.requires_grad:
            output.register_hook(lambda _: phase.set("complete", j))

    handles = [
        module.register_forward_hook(lambda _m, _a, output, j=j: follow(j, output))
        for j, module in cuts
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
