"""How ranks meet their neighbors, wait for them and let go of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import many_tensors_cases as many_tensors
import parallel_cases as cases
import pytest
import torch
import torch.distributed as dist
from parallel_cases import Case
from ranks import free_port, run_ranks

from hpff.parallel import ModuleParallel
from hpff.parallel.neighbors import Connections

CPU = torch.device("cpu")
ROW = [[0, 1]]
SCRIPT = """
import sys
import torch.distributed as dist
import parallel_cases as cases
from hpff.parallel import ModuleParallel

dist.init_process_group("gloo")
ranks = ModuleParallel(cases.learner_of(cases.Case()), sizes=(3, 3), timeout=60)
ranks.backward(*cases.batches(cases.Case())[0], on_module_done=lambda _: None)
ranks.finish()
dist.barrier()
if ranks.rank == 0:
    {end}
"""


def refused_on_one() -> None:
    ModuleParallel(cases.learner_of(Case(), model=cases.Remembers()), sizes=(3, 3))


def test_what_one_rank_refuses_every_rank_refuses() -> None:
    first, second = run_ranks(2, refused_on_one)
    assert "AgreedError: modules 4-6 of this model cannot run alone" in first
    assert second == first


def met_by_one() -> float:
    if dist.get_rank():
        time.sleep(4)
        return 0.0
    Connections(1, CPU, 1.0, ROW)
    raise AssertionError("they cannot have met")


def test_a_rank_that_does_not_connect_is_waited_for_so_long_and_no_longer() -> None:
    first, _ = run_ranks(2, met_by_one)
    assert "LostRankError: ranks 0 and 1 have not met within 1 s: a rank hangs" in first


def late(seconds: float) -> bool:
    rank = dist.get_rank()
    connections = Connections(1 + rank, CPU, 1.0, ROW)
    time.sleep(seconds)
    if rank == 0:
        connections.send_output(torch.ones(3))
        came = True
    else:
        came = torch.equal(connections.receive_output(), torch.ones(3))
    connections.close()
    return came


def test_what_nobody_waits_for_may_come_later_than_that() -> None:
    assert run_ranks(2, late, 2.5) == [True, True]


def test_many_tensors_of_a_batch_and_many_cascades_do_not_wait_for_each_other() -> None:
    first, _ = run_ranks(2, many_tensors.by_two)
    expected = many_tensors.by_one()
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], expected[name]) for name in first)


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "code"), [("raise ValueError", 1), ("sys.exit(3)", 3), ("pass", 0)]
)
def test_a_loop_that_leaves_its_connections_open_ends_as_python_does(
    end: str, code: int, tmp_path: Path
) -> None:
    script = tmp_path / "loop.py"
    script.write_text(SCRIPT.format(end=end))
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                **os.environ,
                **names,
                "RANK": str(rank),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(100) for process in started] == [code, 0]
