"""One step of a model at a time, which belongs to the thread that runs it."""

from __future__ import annotations

import threading
import weakref
from typing import ClassVar, final

import torch
from torch import nn

from hpff.errors import UserError


@final
class Stepping:
    """A running step: of which model, in which thread. Inside, the model takes no other step.

    Raises:
        UserError: on entering, as it is taking one.
    """

    _running: ClassVar[weakref.WeakKeyDictionary[nn.Module, weakref.ref[Stepping]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._thread = threading.get_ident()

    def __enter__(self) -> Stepping:
        running = self._running.setdefault(self._model, weakref.ref(self))()
        if running is None:  # An interrupt cut it off.
            self._running[self._model] = weakref.ref(self)
        elif running is not self:
            raise UserError(
                "backward was called while a step of the same model runs, in another thread or in "
                "a callback; wait for its end, or give each thread a copy of the learner"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._running.get(self._model) is weakref.ref(self):
            del self._running[self._model]

    def is_elsewhere(self) -> bool:
        """Whether the current thread is one that uses the model by itself.

        Autograd's own threads work for the step.
        """
        other = threading.get_ident() != self._thread
        return other and torch._C._current_graph_task_id() == -1
