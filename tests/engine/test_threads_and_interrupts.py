"""A step beside other threads, and under Ctrl-C."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack

from hpff import LocalLearner, check_gradients
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError

INPUTS = torch.randn(4, 3, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
TARGETS = torch.tensor([0, 1, 1, 0])


def chain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)), nn.Linear(3, 2)
    )


def learner(recompute: Recompute = "never", criterion: Any = F.cross_entropy) -> LocalLearner:
    return LocalLearner(
        chain(),
        modules=["0", "1", "2"],
        example=INPUTS,
        num_classes=2,
        patches=1,
        recompute=recompute,
        criterion=criterion,
    )


def in_another_thread(work: Callable[[], object]) -> object:
    """What the work gives, or raises, in a thread that ends before this one goes on."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


class Pauses:
    """A criterion that lets another thread work in the middle of a step."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.results: list[object] = []

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.results.append(in_another_thread(self.work))
        return F.cross_entropy(logits, targets)


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # by a thread's first product
@pytest.mark.parametrize("compiled", [False, True])
def test_another_thread_may_use_the_model_in_the_middle_of_a_step(compiled: bool) -> None:
    pause = Pauses(lambda: None)
    found = learner(criterion=pause)
    pause.work = lambda: found.model(INPUTS)
    if compiled:
        for block in found.model:
            block.compile(backend="eager")
    expected = found.model(INPUTS)
    found.zero_grad()
    pause.results.clear()

    found.backward(INPUTS, TARGETS)

    assert len(pause.results) > 3
    for output in pause.results:
        assert isinstance(output, Tensor), output
        assert output.requires_grad
        torch.testing.assert_close(output, expected)
    pause.work = lambda: None
    found.double()
    assert check_gradients(found, INPUTS.double(), TARGETS) == {}


def test_two_steps_of_a_model_at_once_are_refused() -> None:
    pause = Pauses(lambda: None)
    found = learner(criterion=pause)
    other = LocalLearner(found.model, modules=2, example=INPUTS, num_classes=2, patches=1)
    for second in (found, other):
        pause.work = lambda second=second: second.backward(INPUTS, TARGETS)
        pause.results.clear()
        found.backward(INPUTS, TARGETS)
        for refused in pause.results:
            assert isinstance(refused, UserError)
            assert "while a step of the same model runs" in str(refused)
    pause.work = lambda: None
    assert not isinstance(in_another_thread(lambda: found.backward(INPUTS, TARGETS)), Exception)


def test_a_step_inside_a_step_is_refused() -> None:
    found = learner()
    with pytest.raises(UserError, match="while a step of the same model runs"):
        found.backward(
            INPUTS, TARGETS, on_module_done=lambda _: found.backward(INPUTS, TARGETS) and None
        )
    found.backward(INPUTS, TARGETS)


class CtrlC:
    """Raises KeyboardInterrupt before the n-th line that runs where modes come and go."""

    functions = ("__enter__", "__exit__", "_push_mode", "_pop_mode", "start", "stop", "_record")
    files = ("_python_dispatch.py", "recomputation.py", "step.py")

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith(self.files) or code.co_name not in self.functions:
            return None
        return self.line

    def line(self, frame: Any, event: str, argument: object) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.line


@pytest.mark.parametrize("recompute", ["once", "repeatedly"])
def test_no_mode_stays_after_an_interrupt(recompute: Recompute) -> None:
    found = learner(recompute)
    lines, before = 0, sys.gettrace()
    while True:
        lines += 1
        interrupt = CtrlC(lines)
        sys.settrace(interrupt)
        try:
            found.backward(INPUTS, TARGETS)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert _len_torch_dispatch_stack() == 0, lines
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None, lines
        if interrupt.left > 0:  # The step has no more lines.
            break
    assert lines > 50
    found.double()
    assert check_gradients(found, INPUTS.double(), TARGETS) == {}
