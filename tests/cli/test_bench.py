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


def test_bench_of_ranks_is_beside_one_process(hpff_process: Hpff, hpff: Hpff) -> None:
    shared = ["--methods", "dgl", "--light", "--parallel", "modules", "--ranks", "2", "--json"]
    answer = hpff_process("bench", *TINY, *shared)
    assert answer.code == 0, answer.err
    made = json.loads(answer.out)
    assert [row["name"] for row in made["rows"]] == [
        "bp, one process",
        "dgl+hpff, one process",
        "dgl+hpff, modules shared out",
    ]
    assert sum(made["modules_of_ranks"]) == 3
    options = TINY[: TINY.index("--rounds")]
    planned = json.loads(hpff("plan", *options, "--light", "--ranks", "2", "--json").out)
    alone, ranks = (row["planned_peak_bytes"] for row in made["rows"][1:])
    assert alone == [planned["one_process_peak_bytes"]]
    assert len(ranks) == 2
    for row in made["rows"]:
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["images_per_step"] == 4
    assert made["rows"][0]["throughput_over_one_process"] == 1


@pytest.mark.long
def test_bench_of_data_gives_each_rank_a_batch(hpff_process: Hpff) -> None:
    answer = hpff_process("bench", *TINY, "--parallel", "data", "--ranks", "2")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    for word in ("dgl+hpff, data shared out", "bp, data shared out", "a batch of its own"):
        assert word in answer.out.replace("\n", " ")


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
        (["resnet20", "--parallel", "module"], ["--parallel: is 'module'", "mean modules?"]),
        ([*TINY, "--parallel", "modules", "--ranks", "0"], ["ranks is 0", "2 or more"]),
        ([*TINY, "--parallel", "modules", "--ranks", "1"], ["ranks is 1", "2 or more"]),
        ([*TINY, "--parallel", "modules", "--ranks", "4"], ["4 ranks for 3 modules"]),
        ([*TINY, "--parallel", "data", "--device", "cuda"], ["leave out --device"]),
        ([*TINY, "--parallel", "data", "--cuda-graph"], ["leave out --device", "--cuda-graph"]),
        ([*TINY, "--cuda-graph", "--device", "cpu"], ["--cuda-graph", "needs a CUDA device"]),
        ([*TINY, "--parallel", "data", "--methods", "bp"], ["backprop is measured beside"]),
        ([*TINY, "--parallel", "data", "--methods", "dgl,infopro"], ["by one method"]),
        ([*TINY, "--parallel", "modules", "--methods", "man"], ["use parallel=data"]),
        (["resnet20", "--parallel", "data", "--batch", "1"], ["batch is 1"]),
    ],
)
def test_bad_benches_are_refused(hpff: Hpff, arguments: list[str], words: list[str]) -> None:
    answer = hpff("bench", *arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("hpff: ")
    assert answer.out == ""
    assert all(word in answer.err for word in words), answer.err
