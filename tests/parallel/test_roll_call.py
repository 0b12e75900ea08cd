"""Signs of life: who is lost, and who still runs."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from platforms import posix_only
from ranks import free_port, run_ranks

from hpff.parallel.processes import joined

WHY = "nothing came"


def lost(port: int, stopped: int) -> str | None:
    """What this rank says when it gives up while one is stopped; that one goes on later."""
    from hpff.parallel.roll_call import RollCall

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["HPFF_STARTED_BY"] = "1"
    rank = dist.get_rank()
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    dist.barrier()
    call = RollCall()
    if rank == stopped:
        parent = os.getpid()
        if not os.fork():
            time.sleep(8)
            os.kill(parent, signal.SIGCONT)
            os._exit(0)
        os.kill(parent, signal.SIGSTOP)
        said = None
    else:
        time.sleep(0.5 * rank)
        said = call.lost(WHY)
    dist.barrier()
    call.close()
    del store
    return said


@pytest.mark.long
@posix_only
def test_one_rank_speaks_for_all_and_names_the_one_that_is_stopped() -> None:
    first, second, third = run_ranks(3, lost, free_port(), 1)
    assert second is None
    said = {each for each in (first, third) if each}
    assert len(said) == 1
    assert said.pop().startswith("rank 1 is gone or was stopped, as rank ")


def failed(port: int) -> str | None:
    """What rank 0 says when it misses rank 1, which left with an error of its own."""
    from hpff.parallel.roll_call import RollCall

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if dist.get_rank() == 0:
        os.environ["HPFF_STARTED_BY"] = "1"
    store = dist.TCPStore("127.0.0.1", port, is_master=not dist.get_rank(), wait_for_workers=False)
    dist.barrier()
    call = RollCall()
    if dist.get_rank() == 1:
        call.failed()
    dist.barrier()
    said = call.lost(WHY)
    dist.barrier()
    call.close()
    del store
    return said


def test_a_rank_that_failed_is_not_called_lost() -> None:
    assert run_ranks(2, failed, free_port()) == [None, "rank 1 has failed; see what it printed"]


@pytest.mark.long
def test_where_every_rank_still_runs_it_says_so() -> None:
    found = run_ranks(2, lost, free_port(), 9)
    said = [each for each in found if each]
    assert len(said) == 1
    assert f"gives up, though every rank still runs: {WHY}" in said[0]


def test_a_rank_alone_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    before = threading.active_count()
    with joined(1, 5.0) as rank:
        assert rank == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
