"""A run of adjacent local modules, and how to run it alone in the model's own forward.

The model's forward runs, but the submodules that come before the part are not: each returns at
once what has the right shapes and no content (NaN), until the last of them returns the tensor that
the part begins from. At the part's end the forward is stopped. What the model does between its
submodules, such as positions and masks, it does as ever. Whether that gives the very same bits is
tried out on the example, so that a model with which it does not is refused.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hpff.cutting.local_modules import Partition
from hpff.cutting.trace import undisturbed
from hpff.errors import UserError
from hpff.torch_support.model_io import call_model, logits_of, mapped, replaced, tensor_at
from hpff.torch_support.random_state import get_random_state, set_random_state


class PartEnd(BaseException):
    """Stops a model's forward at the end of a part; nothing of the model's should catch it."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


@dataclass(frozen=True)
class Call:
    """One run of a submodule on the example.

    Attributes:
        name: the submodule's.
        module: the local module (from 1) during which it began.
        began, ended: times.
        returned: what it returned, the tensors without content.
        differentiable: whether any of these carried a gradient.
    """

    name: str
    module: int
    began: int
    ended: int
    returned: Any
    differentiable: bool


@dataclass(frozen=True)
class Part:
    """Modules ``first`` to ``last`` of a cut model.

    Attributes:
        partition: the whole cut.
        skipped: what is not run before the part: by submodule, what each call returned.
        batch: samples of the example.
    """

    partition: Partition
    first: int
    last: int
    skipped: Mapping[str, Sequence[Any]]
    batch: int

    @property
    def is_first(self) -> bool:
        return self.first == 1

    @property
    def is_last(self) -> bool:
        return self.last == len(self.partition)

    def run(self, model: nn.Module, inputs: Any, enter: Callable[[], Tensor]) -> Any:
        """The model's forward through this part alone.

        Args:
            model: the whole.
            inputs: of the whole model, of the example's sizes but for the batch.
            enter: gives the tensor that the part begins from; not called for the first part.

        Returns:
            What the model returns; of a part that is not the last, the output where it ends.
        """
        grad = torch.set_grad_enabled(torch.is_grad_enabled())
        with grad, self._skipping(model, inputs, enter), self._stopping(model):
            try:
                return call_model(model, inputs)
            except PartEnd as end:
                return end.output

    @contextmanager
    def _skipping(
        self, model: nn.Module, inputs: Any, enter: Callable[[], Tensor]
    ) -> Iterator[None]:
        if self.is_first:
            yield
            return
        before = self.partition[self.first - 2]
        batch, grad = batch_of(inputs), torch.is_grad_enabled()
        with ExitStack() as stubs:

            def entered() -> Any:
                stubs.close()
                torch.set_grad_enabled(grad)
                hollow = self._hollow(self.skipped[before.end][0], batch)
                place = tensor_at(hollow, before.path)
                assert place is not None
                return replaced(hollow, place, enter())

            for name, returned in self.skipped.items():
                waiting = iter(returned)
                stub = (
                    (lambda *_, **__: entered())
                    if name == before.cut
                    else (lambda *_, w=waiting, **__: self._hollow(next(w), batch))
                )
                stubs.enter_context(_forward_is(model.get_submodule(name), stub))
            torch.set_grad_enabled(False)
            yield

    def _hollow(self, returned: Any, batch: int) -> Any:
        """What a submodule returned, for another batch and without content."""
        return mapped(returned, lambda t: _blank(t, batch if t.shape[:1] == (self.batch,) else 0))

    @contextmanager
    def _stopping(self, model: nn.Module) -> Iterator[None]:
        module = self.partition[self.last - 1]
        if module.cut is None:
            yield
            return

        def stop(returned: Any) -> Any:
            output = tensor_at(returned, module.path)
            assert output is not None
            raise PartEnd(output)

        with _followed(model.get_submodule(module.cut), stop):
            yield


class Parts:
    """The parts of a cut model: what one run on the example shows of it.

    Args:
        model: with all its parameters.
        partition: its cut.
        example: one small input.

    Attributes:
        calls: of its submodules, in the order of their ends.
    """

    def __init__(self, model: nn.Module, partition: Partition, example: Any) -> None:
        self._model = model
        self._partition = partition
        self._example = example
        self.calls = _watched(model, partition, example)

    def part(self, first: int, last: int) -> Part:
        """Modules ``first`` to ``last``.

        Raises:
            UserError: run alone they do not give the very same output as in the whole model.
        """
        part = self.untried(first, last)
        if (first, last) != (1, len(self._partition)):
            self._try_out(part)
        return part

    def untried(self, first: int, last: int) -> Part:
        """The same, without a look at whether they can run alone."""
        return Part(self._partition, first, last, self._skipped(first), batch_of(self._example))

    def buffer_modules(self) -> dict[str, set[int]]:
        """For each buffer in the model's ``state_dict`` the local modules that may change it."""
        users = defaultdict(set)
        for call in self.calls:
            users[call.name].add(call.module)
        found = {}
        for name, owner in self._model.named_modules():
            for key, buffer in owner.named_buffers(name, recurse=False):
                if buffer is not None:
                    found[key] = users.get(name, {1})
        return found

    def _skipped(self, first: int) -> dict[str, list[Any]]:
        """The outermost differentiable calls before a part."""
        if first == 1:
            return {}
        cut = self._partition[first - 2].cut
        entry = next(call for call in self.calls if call.name == cut)
        before = [c for c in self.calls if c.ended <= entry.ended and c.differentiable]
        skipped = defaultdict(list)
        for call in before:
            if not any(o.began < call.began and call.ended < o.ended for o in before):
                skipped[call.name].append(call.returned)
        return dict(skipped)

    def _try_out(self, part: Part) -> None:
        """Compare a part's run with the whole model's, on the example taken twice."""
        inputs, device = _twice(self._example), self._partition[0].device
        with undisturbed(self._model):
            begun, state, expected = self._whole(part, inputs)

        def enter() -> Tensor:
            set_random_state(state, device)
            assert begun is not None
            return begun

        with undisturbed(self._model):
            set_random_state(state, device)
            try:
                found = part.run(self._model, inputs, enter)
            except Exception as error:
                raise refused(part, " ".join(str(error).split())[:200]) from error
            found = logits_of(found) if part.is_last else found
            if not torch.equal(found, expected):
                raise refused(part, "its output differs")

    def _whole(self, part: Part, inputs: Any) -> tuple[Tensor | None, Any, Tensor]:
        """What the part begins from and ends with in the whole model, and the random state."""
        device = self._partition[0].device
        seen: dict[str, Any] = {"begun": None, "state": get_random_state(device)}

        def begins(returned: Any) -> None:
            begun = tensor_at(returned, self._partition[part.first - 2].path)
            assert begun is not None
            seen["begun"] = _same_layout(begun.detach())
            seen["state"] = get_random_state(device)

        def ends(returned: Any) -> None:
            output = tensor_at(returned, self._partition[part.last - 1].path)
            assert output is not None
            raise PartEnd(output.detach().clone())

        hooks = ExitStack()
        for j, hook in ((part.first - 1, begins), (part.last, ends)):
            if 0 < j < len(self._partition):
                cut = self._model.get_submodule(self._partition[j - 1].end)
                hooks.enter_context(_followed(cut, hook))
        try:
            output = logits_of(call_model(self._model, inputs)).detach()
        except PartEnd as end:
            output = end.output
        finally:
            hooks.close()
        return seen["begun"], seen["state"], output


def batch_of(inputs: Any) -> int:
    """How many samples a model's inputs hold."""
    sizes: list[int] = []
    tree_map_only(Tensor, lambda t: sizes.append(len(t)) if t.ndim else None, inputs)
    return sizes[0] if sizes else 0


def refused(part: Part, why: str) -> UserError:
    """What is said of a part that cannot run alone."""
    end = f"module {part.last}" if part.first == part.last else f"modules {part.first}-{part.last}"
    return UserError(
        f"{end} of this model cannot run alone on a device of their own: {why}; the model uses "
        "what came before its cuts in another way than through their outputs: name other cuts, or "
        "use parallel=data"
    )


def _blank(tensor: Tensor, batch: int) -> Tensor:
    """A tensor of this shape that takes no memory, for another batch if one is given."""
    content = math.nan if tensor.is_floating_point() or tensor.is_complex() else 0
    shape = (batch, *tensor.shape[1:]) if batch else tensor.shape
    return tensor.new_full((), content).expand(shape)


def _same_layout(tensor: Tensor) -> Tensor:
    """A copy with the same strides, so that kernels give the same bits."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _twice(inputs: Any) -> Any:
    batch = batch_of(inputs)

    def twice(tensor: Tensor) -> Tensor:
        if tensor.shape[:1] != (batch,):
            return tensor
        doubled = torch.cat((tensor, tensor))
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return doubled.contiguous(memory_format=torch.channels_last)
        return doubled

    return tree_map_only(Tensor, twice, inputs)


def _watched(model: nn.Module, partition: Partition, example: Any) -> list[Call]:
    """The calls of a model's submodules on the example."""
    calls: list[Call] = []
    running: list[tuple[int, int]] = []
    cuts = {module.cut for module in partition if module.cut}
    clock = iter(range(1 << 62))
    passed = [1]

    def before(*_: Any) -> None:
        running.append((next(clock), passed[0]))

    def after(name: str, returned: Any) -> None:
        began, module = running.pop()
        tensors: list[Tensor] = []
        mapped(returned, lambda t: tensors.append(t) or t)  # type: ignore[func-returns-value]
        hollow = mapped(returned, lambda t: _blank(t.detach(), 0))
        carries = any(tensor.grad_fn is not None for tensor in tensors)
        calls.append(Call(name, module, began, next(clock), hollow, carries))
        passed[0] += name in cuts

    handles = []
    try:
        for name, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(lambda *given, name=name: after(name, given[-1])),
            ]
        with undisturbed(model):
            call_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _followed(module: nn.Module, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Let a hook see what a submodule returns; it is not compiled where the submodule is."""
    compiled = module._compiled_call_impl
    if compiled is None:
        handle = module.register_forward_hook(lambda *given: hook(given[-1]))
    else:
        module._compiled_call_impl = lambda *args, **kwargs: hook(compiled(*args, **kwargs))
    try:
        yield
    finally:
        if compiled is None:
            handle.remove()
        else:
            module._compiled_call_impl = compiled


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a submodule do something else, compiled or not, and give it back whatever happens."""
    own, compiled = module.__dict__.get("forward"), module._compiled_call_impl
    module.__dict__["forward"] = forward
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
