"""One step through the model's own forward: hooks at the cuts feed the schedule."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from hpff.cutting.local_modules import LocalModule
from hpff.cutting.trace import is_compiled
from hpff.engine.anchors import Kept
from hpff.engine.auxiliary_networks import AuxiliaryNetworks, image_of
from hpff.engine.level_weights import Level
from hpff.engine.local_loss import LocalLoss, Work
from hpff.engine.phase import Phase
from hpff.engine.reach import Reach
from hpff.engine.recomputation import FreedTensors, Recompute, Tape
from hpff.engine.schedule import Step
from hpff.engine.stepping import Stepping
from hpff.engine.streams import Streams, turns_of
from hpff.errors import UserError
from hpff.features import mask_of
from hpff.methods import Method
from hpff.torch_support.group_norm import has_group_norm, without_channels_last
from hpff.torch_support.model_io import (
    Outputs,
    Path,
    call_model,
    outputs_of,
    replaced,
    tensor_at,
    tensors_in,
)
from hpff.torch_support.modes import modes_restored

Place = TypeVar("Place")


@dataclass(frozen=True)
class Losses:
    """What one step gives. All tensors are detached; the losses are scalars, unweighted.

    Attributes:
        final: the loss of the network's own output; where the network has an auxiliary head of its
            own, with that one's loss, weighted.
        logits: (B, num_classes), the network's own output; (B, num_classes, H, W) of a
            segmentation.
        independent: for each module j = 1..K its independent loss, the last being ``final``;
            empty where the level is off.
        cascade: for each cascade its loss, by the module where it ends (k..K), the last being
            ``final``; empty where the level is off.
        total: the weighted sum of both levels, the number that the step reduces.
    """

    final: Tensor
    logits: Tensor
    independent: tuple[Tensor, ...]
    cascade: tuple[Tensor, ...]
    total: Tensor


class HookedStep:
    """One step through a model's own forward: what the hooks and the schedule share.

    Args:
        model: the backbone.
        networks: its cut, and the auxiliary networks there.
        reach: how far down the cascades train.
        parameters: for each module the backbone's parameters that it may use.
        recompute: what is recomputed instead of kept.
        kept: what modules keep for recomputation by blocks; empty otherwise.
        phase: kept up to date.
        streams: what the work is launched on; None for the one that is there.
    """

    def __init__(
        self,
        model: nn.Module,
        networks: AuxiliaryNetworks,
        reach: Reach,
        parameters: Sequence[Sequence[Tensor]],
        *,
        recompute: Recompute,
        kept: Sequence[Kept],
        phase: Phase,
        streams: Streams | None = None,
    ) -> None:
        self._model = model
        self._networks = networks
        self._partition = networks.partition
        self._reach = reach
        self._parameters = parameters
        self._phase = phase
        self._recompute = recompute
        self._kept = kept
        self._streams = streams or Streams()
        self._losses: dict[tuple[Level, int], Tensor] = {}
        self._start = torch.empty(0)
        self._next = 0
        self._busy = False
        self._freed = FreedTensors()
        self._tape: Tape | None = None
        self._compiled = any(is_compiled(module) for module in model.modules())
        if self._compiled and recompute != "never":
            raise UserError("compiled blocks cannot be recomputed; use recompute='never'")
        self._plain_maps = has_group_norm(model)

    def run(
        self,
        inputs: Any,
        targets: Tensor,
        scale: float | Tensor = 1.0,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> Losses:
        """The model's own forward, with local work at every cut.

        Args:
            inputs: what the model takes.
            targets: what the losses compare with.
            scale: factor of every gradient.
            on_done: called with j when the gradients of module j are final.
        """
        self._run(inputs, targets, scale, on_done)
        return self._result()

    def _run(
        self,
        inputs: Any,
        targets: Tensor,
        scale: float | Tensor,
        on_done: Callable[[int], None],
    ) -> None:
        with Stepping(self._model) as self._stepping:
            self._networks.before_step()
            self._image = image_of(inputs)
            self._mask = mask_of(self._model, inputs)
            self._passed: dict[int, list[weakref.ref[Tensor]]] = {}
            self._targets = targets
            self._on_done = on_done
            self._scale = scale
            self._step = self._schedule()
            own = self._own()
            cuts = [(m.cut, self._model.get_submodule(m.cut)) for m in own if m.cut]
            passing = [
                (path, self._model.get_submodule(name))
                for module in (own if self._kept else ())
                for name, path in module.passing
            ]
            independent = self._networks.weights.independent > 0
            self._streams.begin(turns_of(self._reach, independent=independent))
            try:
                reused = self._compiled and any(self._reach.carried_through)
                compiling = _compiling_for_reuse() if reused else nullcontext()
                hooks = _hooked(cuts, self._hook), _hooked(passing, self._pass)
                with modes_restored(), hooks[0], hooks[1], compiling, torch.enable_grad():
                    self._forward(inputs)
            finally:
                self._streams.end()
                # This object and its step refer to each other: let go of the last tensors.
                del self._step, self._start, self._image, self._tape
                self._phase.set("", 0)

    def _own(self) -> Sequence[LocalModule]:
        """The modules that this step is through."""
        return self._partition.modules

    def _schedule(self, **part: Any) -> Step:
        """The schedule of the step, for all modules or a part of them."""
        weights = self._networks.weights
        return Step(
            reach=self._reach,
            parameters=self._parameters,
            loss=self._loss,
            share=lambda level: weights.for_modules(level) / weights.for_network(level),
            independent=weights.independent > 0,
            on_done=self._done,
            phase=self._phase,
            freed=self._freed,
            streams=self._streams,
            holds={module.index for module in self._partition if module.read_later},
            around=self._around,
            **part,
        )

    def _forward(self, inputs: Any) -> None:
        self._record(next((tensor for _, tensor in tensors_in(inputs)), None))
        self._finish(outputs_of(call_model(self._model, inputs)))

    def _hook(self, name: str, returned: Any) -> Any:
        """Take a cut submodule's output and give the next module its input."""
        if self._stepping.is_elsewhere():
            return returned
        module = self._partition[self._next]
        if self._busy:
            raise UserError(
                f"submodule {name!r} runs again during the backward: the model recomputes "
                "(checkpoints) blocks that are cut; turn that off, local modules save that memory"
            )
        if module.cut != name:
            due = module.cut or "the head"
            raise UserError(
                f"submodule {name!r} ran where {due!r} was due: the model does not run as it did "
                "on the example; every cut must run once, in the same order"
            )
        output = tensor_at(returned, module.path)
        if output is None:
            raise UserError(
                f"submodule {name!r} returns no tensor where it did on the example: the model "
                "does not run as it did on the example"
            )
        self._next += 1
        self._busy = True
        self._stop_recording()
        self._streams.ready()
        self._free_passed(module.index, last_only=True)
        if self._compiled and self._reach.carried_through[module.index - 1]:
            _refuse_donation(output)
        features = self._networks.features(module.index, output, self._image, self._mask)
        self._start = self._step.boundary(self._start, output, features, self._tape)
        self._busy = False
        return self._go_on(module, returned, output)

    def _go_on(self, module: LocalModule, returned: Any, output: Tensor) -> Any:
        """What the model goes on with after a module: its output detached."""
        self._record(self._start)
        return replaced(returned, output, self._next_input(overwritten=module.overwritten))

    def _pass(self, path: Path, returned: Any) -> Any:
        """Note what a submodule inside a module passes on."""
        output = tensor_at(returned, path)
        if output is not None and not (self._busy or self._stepping.is_elsewhere()):
            self._passed.setdefault(self._next, []).append(weakref.ref(output))
        return returned

    def _done(self, j: int) -> None:
        self._free_passed(j)
        self._on_done(j)

    def _free_passed(self, j: int, *, last_only: bool = False) -> None:
        """Take the content of what was passed on in module j: the model's frames may hold it."""
        passed = self._passed.get(j - 1, [])
        for reference in passed[-1:] if last_only else passed:
            tensor = reference()
            if tensor is not None:
                self._freed.add(tensor)

    def _next_input(self, *, overwritten: bool) -> Tensor:
        start = without_channels_last(self._start) if self._plain_maps else self._start
        return start.clone() if overwritten and start is self._start else start

    def _finish(self, outputs: Outputs) -> None:
        missed = [m.cut for m in self._partition[self._next : -1]]
        if missed:
            raise UserError(
                f"submodule {missed[0]!r} did not run in this step: the model does not run as it "
                "did on the example (if the whole model is compiled, compile its blocks instead)"
            )
        weights = self._networks.weights
        share = weights.for_modules("cascade") / weights.for_modules("final")
        self._stop_recording()
        self._logits = outputs.logits.detach()
        self._busy = True
        self._step.finish(
            self._start,
            outputs.logits,
            carried_share=share,
            tape=self._tape,
            own_head=outputs.own_head,
        )

    def _record(self, start: Tensor | None) -> None:
        """Where modules are recomputed, note how the next one's tensors come about."""
        if self._recompute != "never":
            kept = self._kept[self._next] if self._kept else None
            self._tape = Tape(start, self._freed, self._phase, self._recompute, kept)
            self._tape.start()

    def _stop_recording(self) -> None:
        if self._tape is not None:
            self._tape.stop()

    def _result(self) -> Losses:
        weights = self._networks.weights
        final = self._losses["final", len(self._partition)]
        independent = [x for (level, _), x in self._losses.items() if level == "independent"]
        cascade = [x for (level, _), x in self._losses.items() if level == "cascade"]
        if weights.independent:
            independent.append(final)
        if weights.cascade:
            cascade.append(final)
        total = torch.zeros_like(final)
        for weight, losses in ((weights.independent, independent), (weights.cascade, cascade)):
            if losses:
                total = total + weight * torch.stack(losses).sum()
        return Losses(final, self._logits, tuple(independent), tuple(cascade), total)

    def _around(self, level: Level, j: int, features: Tensor, work: Work) -> Tensor:
        """Take a local loss's gradients, unless who watches the step does it otherwise."""
        if self._phase.instead is None or level in ("final", "own head"):
            return work()
        method = self._networks.method
        depends = type(method).loss is not Method.loss  # on where the network sits, perhaps
        loss = LocalLoss(
            module=j,
            network=self._networks.at(level, j),
            given=(features, self._image, self._targets),
            settings=(level, self._scale, (method, j) if depends else self._networks.criterion),
            losses=self._losses,
            name=(level, j),
        )
        return self._phase.instead(loss, work)

    def _loss(self, level: Level, j: int, features: Tensor) -> Tensor:
        loss = self._networks.loss(level, j, features, self._image, self._targets)
        if level == "own head":
            self._losses["final", j] = self._losses["final", j] + loss.detach()
        else:
            self._losses[level, j] = loss.detach()
        return loss * (self._scale * self._networks.weights.for_network(level))


@contextmanager
def _hooked(
    places: Sequence[tuple[Place, nn.Module]], hook: Callable[[Place, Any], Any]
) -> Iterator[None]:
    """Let ``hook`` stand at the outputs of submodules, and take it away whatever happens.

    A submodule that was compiled in place would compile its hooks too, so its call is wrapped.
    """
    handles = []
    compiled: list[tuple[nn.Module, Any]] = []
    try:
        for place, module in places:
            inner = module._compiled_call_impl
            if inner is not None:
                compiled.append((module, inner))
                module._compiled_call_impl = _followed(inner, place, hook)
            else:
                handles.append(
                    module.register_forward_hook(lambda _m, _a, out, place=place: hook(place, out))
                )
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, inner in compiled:
            module._compiled_call_impl = inner


def _followed(call: Any, place: Place, hook: Callable[[Place, Any], Any]) -> Any:
    return lambda *args, **kwargs: hook(place, call(*args, **kwargs))


@contextmanager
def _compiling_for_reuse() -> Iterator[None]:
    """Blocks that are compiled in here can be differentiated more than once.

    A compiled backward may overwrite ("donate") what the forward saved. Caches on disk are left
    out of it, as they do not tell apart what was compiled with and without donation.
    """
    with ExitStack() as stack:
        stack.enter_context(
            functorch_config.patch(donated_buffer=False, enable_autograd_cache=False)
        )
        inductor = sys.modules.get("torch._inductor.config")  # there if a block is to use it
        if inductor is not None:
            stack.enter_context(inductor.patch(fx_graph_cache=False))
        yield


def _refuse_donation(output: Tensor) -> None:
    """Refuse a graph whose compiled backward overwrites what it saved: it works only once.

    PyTorch's own check is off while blocks are compiled for reuse.
    """
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        compiled = getattr(getattr(node, "_forward_cls", None), "metadata", None)
        if getattr(compiled, "bw_donated_idxs", None):
            raise UserError(
                "a block was compiled for plain backprop before the learner's first step, and "
                "cannot be differentiated twice; call torch.compiler.reset() first"
            )
        waiting += [producer for producer, _ in node.next_functions]
