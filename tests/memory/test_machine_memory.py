from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from platforms import posix_only

from hpff.memory import machine_memory as module
from hpff.memory.machine_memory import machine_memory

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the control groups of a machine that has none yet."""
    monkeypatch.setattr(module, "_GROUPS", tmp_path)
    monkeypatch.setattr(module, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


@posix_only
def test_the_machine_has_what_is_installed(groups: Path) -> None:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_memory(CPU) == installed > 2**28


@posix_only
@pytest.mark.parametrize(
    ("own", "file", "expected"),
    [
        ("0::/", "memory.max", 5000),
        ("0::/outer/inner", "outer/memory.max", 5000),
        ("9:cpu:/else\n4:memory:/inner\n0::/", "memory/inner/memory.limit_in_bytes", 5000),
        ("4:memory:/gone/with/the/host", "memory/memory.limit_in_bytes", 5000),
        ("0::/", "other/memory.max", None),
        ("0::/", "memory/memory.limit_in_bytes", None),
        ("broken", "memory.max", None),
    ],
)
def test_a_control_group_has_less(groups: Path, own: str, file: str, expected: int | None) -> None:
    (groups / "own").write_text(f"{own}\n")
    (groups / file).parent.mkdir(parents=True, exist_ok=True)
    everything = machine_memory(CPU)
    (groups / file).write_text("5000\n")
    assert machine_memory(CPU) == (expected or everything)
    (groups / file).write_text("max\n")
    assert machine_memory(CPU) == everything


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert machine_memory(CPU) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_has_its_own() -> None:
    free, total = torch.cuda.mem_get_info()
    assert free <= machine_memory(torch.device("cuda")) == total
