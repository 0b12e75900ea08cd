"""Real processes for tests: a group of ranks that runs one function, and what each gave."""

from __future__ import annotations

import io
import multiprocessing
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpff.errors import UserError

_PRELOADED = ["torch", "torch.distributed", "torch._dynamo", "hpff", "hpff.parallel"]


def run_ranks(
    world: int, function: Callable[..., Any], *given: Any, seconds: float = 120
) -> list[Any]:
    """``function(*given)`` in each of ``world`` processes with a Gloo group around them.

    Returns:
        For each rank what the function returned; of one that raised, the exception's text.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    port = free_port()
    started = []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(rank, world, port, theirs, function, given))
        process.start()
        theirs.close()
        started.append((process, ours))
    results = []
    for process, pipe in started:
        results.append(_result(pipe, seconds))
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return results


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _result(pipe: Any, seconds: float) -> Any:
    if not pipe.poll(seconds):
        return "nothing came"
    try:
        return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True)
    except EOFError:
        return "killed"


def _rank(
    rank: int, world: int, port: int, pipe: Any, function: Callable[..., Any], given: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        result = function(*given)
    except (RuntimeError, UserError) as error:
        traceback.print_exc()
        _send(pipe, f"{type(error).__name__}: {error}")
        return
    _send(pipe, result)
    dist.destroy_process_group()


def _send(pipe: Any, result: Any) -> None:
    archive = io.BytesIO()
    torch.save(result, archive)
    pipe.send_bytes(archive.getvalue())
