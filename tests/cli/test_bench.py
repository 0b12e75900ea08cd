"""`hpff bench`: every method side by side, what it prints and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Hpff = Callable[..., Any]
TINY = ["resnet20", "--modules", "3", "--image", "3,8,8", "--batch", "4", "--rounds", "2"]


def test_bench_measures_what_the_plan_says(hpff: Hpff) -> None:
    strategies = ["--methods", "dgl", "--recompute", "repeatedly"]
    measured = json.loads(hpff("bench", *TINY, *strategies, "--device", "cpu", "--json").out)
    options = TINY[: TINY.index("--rounds")]
    planned = json.loads(hpff("plan", *options, *strategies, "--json").out)
    assert measured["rows"][-1]["label"] == "dgl+hpff recompute=repeatedly"
    assert measured["machine"]["torch"]
    assert [row["peak_bytes"] for row in measured["rows"]] == [
        row["peak_bytes"] for row in planned["rows"]
    ]
    for row in measured["rows"]:
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
    assert measured["rows"][0]["over_first_quartiles"] == [1, 1, 1]


def test_bench_prints_a_table(hpff: Hpff) -> None:
    answer = hpff("bench", *TINY, "--methods", "auglocal", "--precision", "bf16")
    assert answer.code == 0
    for word in ("auglocal+hpff", "bf16", "2 rounds", "Machine: cpu"):
        assert word in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet20", "--rounds", "1"], ["rounds 1", "2 or more"]),
        (["resnet20", "--batch", "1"], ["batch is 1"]),
        (["resnet20", "--device", "tpu"], ["--device: is 'tpu'", "auto, cpu or cuda"]),
        (["resnet20", "--recompute", "heavy"], ["--recompute: is 'heavy'"]),
        (["resnet20", "--modules", "layer1,layer1"], ["--modules"]),
        (["resnet20", "--modules", "77"], ["modules=77"]),
        (["resnet2"], ["unknown model 'resnet2'"]),
        (["resnet20", "--precision", "int8"], ["precision is 'int8'"]),
    ],
)
def test_bad_benches_are_refused(hpff: Hpff, arguments: list[str], words: list[str]) -> None:
    answer = hpff("bench", *arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("hpff: ")
    assert answer.out == ""
    assert all(word in answer.err for word in words), answer.err
