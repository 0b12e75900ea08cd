"""Which ranks still run: each says so every second, where the others look when one is missed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from hpff.errors import UserError

STARTED_BY = "HPFF_STARTED_BY"  # names the process that started a rank, and looks after it
_EVERY = 1.0  # seconds between signs of life
_WATCHED = 5.0  # seconds without one after which a rank counts as gone or stopped
_PATIENCE = timedelta(seconds=10)  # with the store
_LEFT_ALONE = 2  # exit code, which nobody reads


class LostRankError(UserError):
    """Another rank does not answer, or its connection closed."""


class RollCall:
    """This rank's signs of life, and a look at those of the others.

    A rank that waits for another still gives them; one that was stopped or has died does not.
    Every rank of the process group must create it.
    """

    def __init__(self) -> None:
        self._rank = dist.get_rank()
        self._ranks = dist.get_world_size()
        start = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(time.time_ns()))
        dist.broadcast(start, 0)  # torchrun may keep what ranks of an earlier start have written
        self._start = int(start)
        self._over = threading.Event()
        self._own = self._connected()
        self._thread = threading.Thread(target=self._sign, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more signs."""
        self._over.set()
        self._thread.join()

    def lost(self, why: str) -> str | None:
        """The line that says which ranks are lost; the first rank to find it speaks for all.

        Args:
            why: this rank looks, in words.

        Returns:
            None where another rank of this machine's run has said it.
        """
        try:
            store = self._connected()
            silent = self._silent(store)
            line = self._line(silent, why)
            said: bytes = store.compare_set(self._key("lost"), "", line)
        except RuntimeError:
            return f"{why}; nor does the place answer where ranks meet: rank 0 or torchrun is gone"
        if said.decode() == line:
            return line
        return None if STARTED_BY in os.environ else said.decode()

    def failed(self) -> None:
        """Say that this rank leaves with an error of its own: it is not lost."""
        with contextlib.suppress(RuntimeError):
            line = f"rank {self._rank} has failed; see what it printed"
            self._connected().compare_set(self._key("lost"), "", line)

    def _line(self, silent: list[int], why: str) -> str:
        if not silent:
            return f"rank {self._rank} gives up, though every rank still runs: {why}"
        listed = ", ".join(map(str, silent))
        verb = "is" if len(silent) == 1 else "are"
        return f"rank {listed} {verb} gone or was stopped, as rank {self._rank} found: {why}"

    def _silent(self, store: Store) -> list[int]:
        """The other ranks without a sign of life for a while, or until another has found some."""
        before = self._signs(store)
        deadline = time.monotonic() + _WATCHED
        while time.monotonic() < deadline and not store.check([self._key("lost")]):
            time.sleep(_EVERY / 4)
        after = self._signs(store)
        others = (rank for rank in range(self._ranks) if rank != self._rank)
        return [rank for rank in others if before[rank] == after[rank]]

    def _signs(self, store: Store) -> list[int]:
        return [store.add(self._key(rank), 0) for rank in range(self._ranks)]

    def _sign(self) -> None:
        with contextlib.suppress(RuntimeError):
            while not self._over.wait(_EVERY):
                self._own.add(self._key(self._rank), 1)
        # The store has gone, perhaps with the process that would end this one.
        while not self._over.wait(_EVERY):
            if _is_left_alone():
                os._exit(_LEFT_ALONE)

    def _key(self, what: object) -> str:
        return f"hpff/{self._start}/{what}"

    @staticmethod
    def _connected() -> Store:
        """A connection of its own, as one that waits for something answers nothing else."""
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=_PATIENCE,
        )


def _is_left_alone() -> bool:
    """Whether the process that started this rank, and would end it, has died itself."""
    parent = os.environ.get(STARTED_BY)
    return parent is not None and os.getppid() != int(parent)
