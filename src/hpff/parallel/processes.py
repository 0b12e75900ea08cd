"""The processes of a run on one machine, and the group that they form."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from hpff.errors import UserError
from hpff.parallel.roll_call import STARTED_BY, LostRankError, RollCall

_GRACE = 10.0  # seconds in which ranks may say themselves what they miss when another is gone
_LOST = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe")
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank() -> bool:
    """Whether this process was started as one of several, by torchrun or by ``start_ranks``."""
    return all(name in os.environ for name in _NEEDED)


def is_restarted() -> bool:
    """Whether torchrun has started its ranks again, after one of them failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def joined(ranks: int, timeout: float, replicas: int = 1) -> Iterator[int]:
    """Inside, this process is in the group of all ranks; gives its own rank.

    Args:
        ranks: how many the run is to have.
        timeout: seconds that ranks wait for each other at most.
        replicas: how many times it is to have them.

    Raises:
        UserError: there are more or fewer, or the others cannot be reached, or one is lost.
        SystemExit: one is lost, and another rank has said so.
    """
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if world != ranks * replicas:
        several = f" × {replicas} replicas (keys ranks and replicas)"
        raise UserError(
            f"the run is to have {ranks} ranks{several if replicas > 1 else ' (key ranks)'}, but "
            f"{world} processes were started; give torchrun as many, or other numbers of ranks"
        )
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        limit = timedelta(seconds=timeout)
        store = _store_of_this_start(limit)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        used = "already in use" in text or "EADDRINUSE" in text
        advice = "the port is in use: choose another" if used else "see that all ranks were started"
        raise UserError(
            f"rank {rank} cannot meet the others at {where}: {advice} ({text})"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    roll_call = None
    try:
        roll_call = RollCall()
        yield rank
    except (RuntimeError, LostRankError) as error:
        why = _why_lost(error, timeout)
        if why is None or roll_call is None:
            _failed(roll_call)
            raise
        atexit.register(_leave_at_once)
        line = roll_call.lost(why)
        if line is None:
            raise SystemExit(2) from error
        raise UserError(f"{line}; the run goes on with --resume") from error
    except BaseException:
        _failed(roll_call)
        raise
    finally:
        if roll_call:
            roll_call.close()
        dist.destroy_process_group()


def _failed(roll_call: RollCall | None) -> None:
    """Tell the other ranks that this one leaves with an error, which it says itself."""
    if roll_call:
        roll_call.failed()


def _leave_at_once() -> None:
    """End this process, as the last thing it does, without waiting for what the lost rank owes.

    Threads that still wait for it would otherwise abort the process while it is taken down.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(2)


def _why_lost(error: Exception, timeout: float) -> str | None:
    """What an error says of another rank, in words; None if it is of this one."""
    if isinstance(error, LostRankError):
        return str(error)
    text = str(error).lower()
    if not any(word in text for word in _LOST):
        return None
    silent = "timed out" in text or "timeout" in text
    return f"nothing came for {timeout:.0f} s" if silent else "a connection closed"


def _store_of_this_start(limit: timedelta) -> Store:
    """Where ranks find each other, and nothing of ranks that have died.

    torchrun keeps one store for all its restarts on one machine (seen in 2.13), in which the dead
    ranks' addresses would be found. On several machines restarts are not counted alike.
    """
    store: Store
    store, _, _ = next(rendezvous("env://", timeout=limit))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    return store


def start_ranks(
    arguments: Sequence[str], ranks: int, goes_on: Callable[[], bool] = lambda: False
) -> int:
    """Run ``hpff`` in so many processes on this machine, and wait for them.

    When one of them fails, the others are ended.

    Args:
        arguments: of the command line.
        ranks: how many.
        goes_on: whether what they do could be resumed by now.

    Returns:
        The exit code of the first rank that failed, or 0; it has said itself what it was.

    Raises:
        UserError: a rank was killed.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        STARTED_BY: str(os.getpid()),
    }
    command = [sys.executable, "-m", "hpff.cli", *arguments]
    started = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    grace = 0.0
    try:
        failed = _first_failure(started)
        grace = _GRACE
    finally:
        _end(started, grace)
    if failed is None:
        return 0
    code = started[failed].returncode
    if code < 0:
        advice = "; the run goes on with --resume" if goes_on() else ""
        raise UserError(
            f"rank {failed} was killed by signal {-code}, so the other ranks were ended{advice}"
        )
    return code


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed first; None once all have ended well."""
    while True:
        codes = [process.poll() for process in started]
        killed = [rank for rank, code in enumerate(codes) if code and code < 0]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return (killed or failed)[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)


def _end(started: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Give those that are left time to end by themselves, then end them."""
    deadline = time.monotonic() + grace
    for stop in (lambda p: None, _terminate, subprocess.Popen.kill):
        for process in started:
            if process.poll() is None:
                stop(process)
        while any(p.poll() is None for p in started) and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline = time.monotonic() + _GRACE


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process; one that was stopped goes on first, or it would not hear of it."""
    process.terminate()
    if hasattr(signal, "SIGCONT"):
        process.send_signal(signal.SIGCONT)
