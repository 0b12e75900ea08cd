"""The schedule: local learning by one forward pass for each module.

HPFF's rule (Su et al., ECCV 2024, the update rule of HiLo) trains module j by its own auxiliary
loss and by the loss of every cascade that contains j. The values on the cascade's path are the
values on the independent path, so each module runs forward once, and the rule becomes a schedule
of vector-Jacobian products (VJPs):

1. when module j's output is known, the auxiliary networks that sit there have their losses on a
   detached copy; their graphs are gone at once, and a cotangent for each level remains;
2. the cascade's cotangent is carried down through the modules that it trains, by VJPs that ask
   for input gradients only;
3. a module that no later cascade reaches takes one weight VJP with the sum of its cotangents, and
   its graph is gone.

With a reach of k modules, at most k graphs are alive, however deep the network is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hpff.engine.level_weights import Level
from hpff.engine.local_loss import Work
from hpff.engine.phase import Phase
from hpff.engine.reach import Reach
from hpff.engine.recomputation import FreedTensors, Tape
from hpff.engine.streams import Streams
from hpff.errors import UserError
from hpff.torch_support.autocast import autocast_off, let_go_of_casts

AuxiliaryLoss = Callable[[Level, int, Tensor], Tensor]
Place = Literal["output", "features", "own_head"]


class _Cotangent(torch.autograd.Function):
    """A scalar whose backward hands out a stored cotangent and does not keep it alive."""

    @staticmethod
    def forward(ctx: Any, stored: list[Tensor], tensor: Tensor) -> Tensor:
        ctx.stored = stored
        return tensor.new_empty(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, ctx.stored.pop()


@dataclass
class _LiveModule:
    """The graph of one module, for as long as a loss can still reach it.

    With a tape the graph has no content: that is recomputed in each backward. The streams
    ``input_home`` and ``cotangent_home`` are those whose memory input and output's cotangent have.
    """

    index: int
    input: Tensor
    input_home: Any
    output: Tensor
    features: Tensor
    parameters: Sequence[Tensor]
    tape: Tape | None
    cotangent_home: Any
    own_head: Tensor | None = None
    cotangents: dict[Place, Tensor] = field(default_factory=dict)

    def add(self, where: Place, cotangent: Tensor) -> None:
        if where == "features" and self.features is self.output:
            where = "output"
        present = self.cotangents.get(where)
        # Not in place: where a module only reshapes, its cotangent and its input's share memory.
        self.cotangents[where] = cotangent if present is None else present + cotangent

    def output_away(self) -> AbstractContextManager[None]:
        """Inside, the output's content may be gone; it is there again afterwards."""
        return self.tape.away(self.output) if self.tape else nullcontext()

    def pullback(self, where: Place, cotangent: Tensor) -> Tensor:
        """The input gradient that ``cotangent`` alone gives; the graph is kept."""
        stored = {where: cotangent}
        del cotangent
        self._vjp(stored, [self.input], keep_graph=True)
        return self._take_input_gradient()

    def complete(self, *, with_input: bool = False) -> Tensor | None:
        """Accumulate the weight gradients of all cotangents; the graph is gone.

        Returns:
            The input gradient of all cotangents, if asked for.
        """
        stored, self.cotangents = self.cotangents, {}
        wanted = [parameter for parameter in self.parameters if parameter.requires_grad]
        if with_input:
            wanted.append(self.input)
        self._vjp(stored, wanted, keep_graph=False)
        return self._take_input_gradient() if with_input else None

    def _vjp(
        self,
        cotangents: dict[Place, Tensor],
        wanted: list[Tensor],
        *,
        keep_graph: bool,
    ) -> None:
        live = [where for where in cotangents if getattr(self, where).requires_grad]
        if not live or not wanted:
            return
        recomputing = self.tape.backward(last=not keep_graph) if self.tape else nullcontext()
        # VJPs run in the types that their forward chose.
        with autocast_off(self.output.device.type), recomputing:
            if "output" in live and "features" in live:
                self._join(cotangents, keep_graph=keep_graph)
                live.remove("features")
            roots = [
                _Cotangent.apply([cotangents.pop(where)], getattr(self, where))  # type: ignore[no-untyped-call]
                for where in live
            ]
            torch.autograd.backward(roots, inputs=wanted, retain_graph=keep_graph)

    def _join(self, cotangents: dict[Place, Tensor], *, keep_graph: bool) -> None:
        """Make of the cotangents of output and features one, of the output."""
        given = cotangents.pop("features")
        (joined,) = torch.autograd.grad(self.features, self.output, given, retain_graph=keep_graph)
        # Not in place where the features are a view of the output: theirs may be another module's.
        shared = joined.untyped_storage()._cdata == given.untyped_storage()._cdata
        del given
        output = cotangents.pop("output")
        in_place = not shared and 0 not in joined.stride()
        cotangents["output"] = joined.add_(output) if in_place else joined + output

    def _take_input_gradient(self) -> Tensor:
        gradient, self.input.grad = self.input.grad, None
        return torch.zeros_like(self.input) if gradient is None else gradient


class Step:
    """One training step: give it each module's output as it appears, in order.

    Args:
        reach: how far each cascade goes.
        parameters: for each module, the backbone's parameters that its weight VJP fills.
        loss: ``loss(level, j, features)`` is the loss (a scalar) of a level at module j, given a
            leaf that requires grad; weighted as the auxiliary network's own parameters take it. At
            the last module the level is ``"final"``, and ``"own head"`` for an auxiliary head that
            the model itself has.
        share: ``share(level)`` is the factor of its gradient at the module's output.
        independent: whether the independent level is on.
        on_done: called with j when all the gradients of module j are final.
        phase: kept up to date.
        freed: takes each module's input when the module is done; see ``holds``.
        streams: told what is launched.
        holds: the modules whose outputs the model reads again later, which keep their content.
        around: ``around(level, j, features, work)`` gives what ``work()`` would.
        first: the first module that is given here; those before are at work elsewhere.
        on_crossing: called with ``(end, cotangent)`` where the cascade that ends at module ``end``
            trains modules before the first: with the gradient at the first one's input.
    """

    def __init__(
        self,
        *,
        reach: Reach,
        parameters: Sequence[Sequence[Tensor]],
        loss: AuxiliaryLoss,
        share: Callable[[Level], float],
        independent: bool,
        on_done: Callable[[int], None],
        phase: Phase,
        freed: FreedTensors,
        streams: Streams,
        holds: Collection[int] = (),
        around: Callable[[Level, int, Tensor, Work], Tensor] = lambda *given: given[-1](),
        first: int = 1,
        on_crossing: Callable[[int, Tensor], None] = lambda *_: None,
    ) -> None:
        self._reach = reach
        self._parameters = parameters
        self._loss = loss
        self._share = share
        self._independent = independent
        self._on_done = on_done
        self._phase = phase
        self._freed = freed
        self._streams = streams
        self._holds = holds
        self._around = around
        self._first = first
        self._on_crossing = on_crossing
        phase.set("forward", first)
        self._live: dict[int, _LiveModule] = {}
        self._newest = first - 1
        self._home: Any = None  # the stream whose memory the newest output has

    def boundary(
        self, start: Tensor, output: Tensor, features: Tensor, tape: Tape | None = None
    ) -> Tensor:
        """Do all the local work that the output of the next module allows.

        Args:
            start: the leaf that this module's forward began from (for module 1, any tensor).
            output: the module's output, of any shape, with its graph.
            features: what the auxiliary networks take: ``output`` itself, or computed from it.
            tape: of the module's forward, if its graph is to be recomputed.

        Returns:
            The detached output, the leaf that the next module begins from.
        """
        module = self._enter(start, output, features, tape)
        j = module.index
        if self._reach.lengths[j - 1] > 1:
            cotangent = self._cotangent("cascade", module, features)
            module.add("features", cotangent)
            self._phase.set("carry", j)
            with module.output_away():
                self._carry_down(j, module.pullback("features", cotangent))
            del cotangent
        if self._independent:
            module.add("features", self._cotangent("independent", module, features))
        if self._reach.last_use[j - 1] == j:
            with module.output_away():
                self._complete(module)
        elif tape is not None:
            tape.rest()
        following = output.detach().requires_grad_(self._reach.carried_through[j])
        if j not in self._live:
            self._free_input(module)  # which the output may be, where a block is dropped
        self._phase.set("forward", j + 1)
        self._streams.forward(j + 1)
        return following

    def finish(
        self,
        start: Tensor,
        logits: Tensor,
        *,
        carried_share: float,
        tape: Tape | None = None,
        own_head: Tensor | None = None,
    ) -> None:
        """The last module: the network's own head and loss stand in for both levels.

        Args:
            start: the leaf that the last module's forward began from.
            logits: the network's output, with its graph.
            carried_share: which part of the last module's loss the modules below it are
                trained by, as a fraction of its weight.
            tape: as for ``boundary``.
            own_head: the output of an auxiliary head of the network's own, if it has one.
        """
        module = self._enter(start, logits, logits, tape)
        module.add("output", self._cotangent("final", module, logits))
        if own_head is not None:
            if tape is not None:
                tape.keep(own_head)
            module.own_head = own_head
            module.add("own_head", self._cotangent("own head", module, own_head))
        carried = self._complete(module, with_input=self._reach.lengths[-1] > 1)
        self._free_input(module)
        if carried is not None:
            self._carry_down(module.index, carried * carried_share)

    def carry_on(self, end: int, carried: Tensor) -> None:
        """Carry a cascade's cotangent down that comes from modules at work elsewhere.

        Args:
            end: the module where the cascade ends, after the last one given here. Cascades come
                in the order of their ends.
            carried: the gradient at the output of the last module given here.
        """
        self._carry_down(end, carried)

    def _enter(
        self, start: Tensor, output: Tensor, features: Tensor, tape: Tape | None
    ) -> _LiveModule:
        self._newest += 1
        self._streams.check(output)
        parameters = self._parameters[self._newest - 1]
        here = self._streams.home(features)
        module = _LiveModule(
            self._newest, start, self._home, output, features, parameters, tape, here
        )
        self._home = self._streams.home(output, start, self._home)
        let_go_of_casts()
        if tape is not None:
            tape.keep(output)
        self._live[self._newest] = module
        return module

    def _cotangent(self, level: Level, module: _LiveModule, features: Tensor) -> Tensor:
        self._phase.set("auxiliary", module.index)
        work = partial(self._local_gradient, level, module.index, features)
        return self._around(level, module.index, features, work)

    def _local_gradient(self, level: Level, j: int, features: Tensor) -> Tensor:
        leaf = features.detach().requires_grad_()
        loss = self._loss(level, j, leaf)
        if not loss.requires_grad:
            raise UserError(f"the {level} loss of module {j} depends on nothing trained")
        let_go_of_casts()
        with autocast_off(leaf.device.type):
            loss.backward()
        if leaf.grad is None:
            return torch.zeros_like(leaf)
        share = self._share(level)
        return leaf.grad if share == 1 else leaf.grad.mul_(share)

    def _carry_down(self, end: int, carried: Tensor) -> None:
        """Carry a cascade's cotangent down through the modules below the one where it ends."""
        first = end - self._reach.lengths[end - 1] + 1
        home = self._streams.home(carried)
        for j in range(min(end - 1, self._newest), max(first, self._first) - 1, -1):
            module = self._live[j]
            self._streams.follow(j)
            final = self._reach.last_use[j - 1] == end
            only_this = not module.cotangents
            self._hand_over(carried, home, module)
            if final and (only_this or j == first):
                del carried
                below = self._complete(module, with_input=j > first)
            else:
                self._phase.set("carry", j)
                below = module.pullback("output", carried) if j > first else None
                if final:
                    self._complete(module)
            if final:
                self._free_input(module)
            if below is not None:
                carried, home = below, self._streams.home(below)
            del below  # or it would stay through the next module
        self._streams.back_to(end)
        if first < self._first:
            self._on_crossing(end, carried)

    def _hand_over(self, carried: Tensor, home: Any, module: _LiveModule) -> None:
        """Give a module a cotangent that has the memory of the stream ``home``."""
        present = module.cotangents.get("output")
        self._streams.lend(carried, home)
        if present is not None:
            self._streams.lend(present, module.cotangent_home)
        module.add("output", carried)
        module.cotangent_home = self._streams.home(module.cotangents["output"], carried, home)

    def _complete(self, module: _LiveModule, *, with_input: bool = False) -> Tensor | None:
        del self._live[module.index]
        self._phase.set("complete", module.index)
        carried = module.complete(with_input=with_input)
        self._on_done(module.index)
        return carried

    def _free_input(self, module: _LiveModule) -> None:
        """Free what a module that is done began from: the model's frames may still hold it."""
        if module.index > 1:
            self._streams.lend(module.input, module.input_home)
            if module.index - 1 not in self._holds:
                self._freed.add(module.input)
