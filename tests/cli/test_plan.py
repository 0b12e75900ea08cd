"""`hpff plan`: the table, the budget, the picture; bad input is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hpff = Callable[..., Any]


def test_plan_prints_the_cut_and_a_row_for_each_way(hpff: Hpff) -> None:
    answer = hpff("plan", "resnet20", "--modules", "4", "--methods", "dgl", "--budget", "1GiB")
    assert answer.code == 0
    assert answer.err == ""
    assert "layer2.0" in answer.out
    for word in ("bp: backward 4: activations of 1", "dgl+hpff", "largest", "MiB"):
        assert word in answer.out


def test_plan_as_json_is_the_same_plan(hpff: Hpff, folder: Path) -> None:
    command = ["plan", "resnet20", "--modules", "layer1.0,layer3.0", "--batch", "32", "--plot"]
    made = hpff(*command, "memory.png", "--json", "--budget", "100MB", "--methods", "dgl")
    content = json.loads(made.out)
    assert [module["cut"] for module in content["modules"]] == ["layer1.0", "layer3.0", None]
    assert content["budget_bytes"] == 10**8
    for row in content["rows"]:
        assert row["peak_bytes"] == sum(part["bytes"] for part in row["alive"])
        assert (row["peak_bytes"] <= 10**8) == (row["largest_batch"] >= 32)
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_plan_has_rows_of_lean_training_where_asked(hpff: Hpff) -> None:
    command = ["plan", "resnet20", "--modules", "3", "--methods", "dgl"]
    command += ["--recompute", "once,repeatedly"]
    rows = {row["label"]: row for row in json.loads(hpff(*command, "--json").out)["rows"]}
    assert list(rows)[2:] == [
        "dgl",
        "dgl+hpff",
        "dgl+hpff recompute=once",
        "dgl+hpff recompute=repeatedly",
    ]
    assert [row["recompute"] for row in rows.values()][2:] == [
        "never",
        "never",
        "once",
        "repeatedly",
    ]
    peaks = [row["peak_bytes"] for row in rows.values()][3:]
    assert peaks[0] > peaks[1] > peaks[2]


def test_plan_shows_first_what_one_wants_first_and_all_methods_where_asked(hpff: Hpff) -> None:
    def labels(*options: str) -> list[str]:
        answer = hpff("plan", "resnet20", "--modules", "3", "--image", "3,8,8", "--json", *options)
        return [row["label"].split(" (")[0] for row in json.loads(answer.out)["rows"]]

    always = ["bp", "bp+checkpointing", "dgl", "dgl+hpff"]
    lean = "bp recompute=blocks", "dgl+hpff recompute=blocks"
    assert labels() == [*always[:2], lean[0], *always[2:], lean[1]]
    assert labels("--recompute", "blocks,once")[5:] == [
        "dgl+hpff recompute=blocks",
        "dgl+hpff recompute=once",
    ]
    roomy = labels("--recompute-budget", "1.5")
    assert [label for label in roomy if "budget" in label] == [
        f"{label} budget=1.5" for label in lean
    ]
    assert {*always, "infopro+hpff", "predsim", "auglocal"} <= set(labels("--methods", "all"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing argument 'MODEL'"]),
        (["resnet21"], ["unknown model 'resnet21'", "did you mean"]),
        (["torchvision/resnet5"], ["unknown model 'torchvision/resnet5'"]),
        (["resnet20", "--modules", "99"], ["modules=99", "1 to 10"]),
        (["resnet20", "--modules", "0"], ["modules=0"]),
        (["resnet20", "--modules", "-3"], ["no submodule '-3'"]),
        (["resnet20", "--modules", "layer9"], ["no submodule 'layer9'"]),
        (["resnet20", "--modules", "layer1,,layer2"], ["--modules: is 'layer1,,layer2'"]),
        (["resnet20", "--modules", "4", "--balance", "luck"], ["balance='luck'"]),
        (["resnet20", "--batch", "1"], ["batch is 1", "2 or more"]),
        (["resnet20", "--batch", "many"], ["--batch", "valid integer"]),
        (["resnet20", "--image", "3,32"], ["--image: is '3,32'", "3,32,32"]),
        (["resnet20", "--image", "3,-1,32"], ["--image: is '3,-1,32'"]),
        (["resnet20", "--image", "3,0,32"], ["image is (3, 0, 32)"]),
        (["torchvision/vgg11", "--image", "3,8,8"], ["does not run on the example"]),
        (["torchvision/vgg11", "--image", "1,64,64"], ["takes images of 3 channels"]),
        (["resnet20", "--num-classes", "0"], ["num_classes is 0"]),
        (["resnet20", "--methods", "dlg"], ["unknown method 'dlg'", "did you mean dgl"]),
        (["resnet20", "--methods", "dgl,dgl"], ["--methods: is 'dgl,dgl'"]),
        (["resnet20", "--modules", "4", "--cascade", "5"], ["cascade is 5", "1 to 4"]),
        (["resnet20", "--cascade", "most"], ["--cascade: is 'most'", "or auto"]),
        (["resnet20", "--recompute", "yes"], ["--recompute: is 'yes'", "once"]),
        (["resnet20", "--recompute", "once,once"], ["--recompute: is 'once,once'"]),
        (["resnet20", "--recompute-budget", "0.5"], ["recompute_budget: is 0.5", "at least 1"]),
        (
            ["resnet20", "--recompute", "once", "--recompute-budget", "2"],
            ["--recompute-budget: is 2, but no row", "give --recompute blocks"],
        ),
        (["resnet20", "--patches", "0"], ["patches: is 0"]),
        (["resnet20", "--optimizer", "lion"], ["optimizer is 'lion'", "adamw"]),
        (["resnet20", "--precision", "fp16"], ["precision is 'fp16'", "bf16"]),
        (["resnet20", "--budget", "16"], ["--budget: is '16'", "16GB"]),
        (["resnet20", "--budget", "0GB"], ["--budget: is '0GB'"]),
        (["resnet20", "--budget", "-1GB"], ["--budget: is '-1GB'"]),
        (["resnet20", "--plot", "memory.jpg"], ["--plot: is memory.jpg", ".png"]),
        (["resnet20", "--plot", "gone/memory.png"], ["--plot: is gone/memory.png"]),
        (["resnet20", "--plot", "."], ["--plot: is ."]),
    ],
)
def test_bad_plans_are_refused(
    hpff: Hpff, folder: Path, arguments: list[str], words: list[str]
) -> None:
    answer = hpff("plan", *arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("hpff: ")
    assert answer.out == ""
    assert all(word in answer.err for word in words), answer.err
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


def test_plan_of_ranks_is_the_same_in_words_and_as_json(hpff: Hpff) -> None:
    command = ["plan", "resnet20", "--modules", "4", "--image", "3,8,8", "--ranks", "2"]
    made = json.loads(hpff(*command, "--batch", "8", "--json").out)
    first, second = made["ranks"]
    assert (first["rank"], second["last_module"]) == (0, 4)
    assert 1 < made["throughput_over_one_process"] <= 2
    assert second["sent_back_bytes"] == first["sent_on_bytes"] == 8 * 32 * 4 * 4 * 4
    balanced = ["--methods", "balanced"]
    peaks = {tuple(rank["peak_bytes"] for rank in made["ranks"])}
    for options in (["--light"], balanced, [*balanced, "--recompute", "once"]):
        other = json.loads(hpff(*command, "--batch", "8", "--json", *options).out)
        peaks.add(tuple(rank["peak_bytes"] for rank in other["ranks"]))
    assert len(peaks) == 4
    answer = hpff(*command)
    assert answer.code == 0
    for word in ("rank", "1-2", "waiting", "Expected throughput: "):
        assert word in answer.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ranks", "1"], ["ranks is 1"]),
        (["--ranks", "5"], ["5 ranks for 4 modules"]),
        (["--ranks", "2", "--methods", "dgl,infopro"], ["--ranks", "one method"]),
        (["--ranks", "2", "--methods", "bp"], ["backprop has one module"]),
        (["--ranks", "2", "--budget", "1GB"], ["--ranks", "without --budget"]),
    ],
)
def test_bad_plans_of_ranks_are_refused(hpff: Hpff, options: list[str], words: list[str]) -> None:
    answer = hpff("plan", "resnet20", "--modules", "4", "--image", "3,8,8", *options)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert all(word in answer.err for word in words), answer.err
