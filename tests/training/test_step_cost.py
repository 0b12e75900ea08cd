from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hpff.training import loop
from hpff.training.evaluation import evaluate
from hpff.training.setup import assemble
from hpff.training.step_cost import PeakMemory, StepClock


def test_the_counted_steps_are_told_apart(make_recipe: Any) -> None:
    memory = PeakMemory(assemble(make_recipe(device="cpu")))
    slowed = []
    for _ in range(4):
        slowed.append(memory.slows_next_step)
        with memory.step(()):
            pass
    assert slowed == [True, True, False, False]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_steps_are_compiled_once_none_is_counted_any_more(make_recipe: Any) -> None:
    torch._dynamo.reset()
    parts = assemble(make_recipe(device="cpu"))
    memory = PeakMemory(parts)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    parts.learner.compile(backend=backend)
    images, targets = torch.rand(4, 1, 8, 8), torch.arange(4)
    compiled = []
    for _ in range(3):
        with memory.step((images, targets)):
            parts.step(images, targets)
        compiled.append(len(graphs) > 0)
    assert compiled == [False, False, True]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
@pytest.mark.parametrize("method", ["bp", "dgl"])
def test_nothing_is_compiled_anew_for_an_evaluation(make_recipe: Any, method: str) -> None:
    torch._dynamo.reset()
    plain = assemble(make_recipe(device="cpu", method=method))
    parts = assemble(make_recipe(device="cpu", method=method, compile=True))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    parts.learner.compile(backend=backend)
    assert evaluate(parts) == evaluate(plain)
    assert graphs == []
    parts.step(torch.rand(4, 1, 8, 8), torch.arange(4))
    assert len(graphs) > 0


def test_what_else_is_measured_of_an_epoch_is_not_compiled_either(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    """The two steps of one epoch are counted, and so not compiled."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: 2 * x, backend=backend)
    constant = {"name": "constant", "warmup_epochs": 0}
    recipe = make_recipe(epochs=1, schedule=constant, device="cpu", compile=True)

    def measure(_: Any) -> dict[str, Any]:
        return {"doubled": doubled(torch.ones(())).item()}

    loop.train(recipe, tmp_path / "run", resume=False, observer=silent(), measure=measure)
    assert graphs == []
    assert doubled(torch.ones(())).item() == 2
    assert len(graphs) == 1


def test_a_clock_knows_its_steps() -> None:
    clock = StepClock(torch.device("cpu"))
    for _ in range(3):
        with clock.step():
            pass
    assert clock.timed == 3
    assert clock.median() > 0


def test_counted_steps_are_no_typical_steps(tmp_path: Path, make_recipe: Any, silent: Any) -> None:
    """Two steps an epoch: the first epoch has counted steps only, and is left out."""
    recipe = make_recipe(epochs=2, device="cpu")
    report = loop.train(recipe, tmp_path, resume=False, observer=silent())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["timed_steps"], second["timed_steps"]) == (0, 2)
    assert report["step_seconds"] == second["step_seconds"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocators_peak_is_that_of_training_alone(make_recipe: Any) -> None:
    memory = PeakMemory(assemble(make_recipe(device="cuda")))
    memory.epoch_begins()
    first = memory.bytes()
    evaluation = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del evaluation
    memory.epoch_begins()
    assert memory.bytes() < first + 2**28


def write_data(folder: Path, brightness: int) -> None:
    image = Image.new("L", (8, 8), brightness)
    image.save(folder / "image.png")
    row = {"bytes": (folder / "image.png").read_bytes(), "path": None}
    for split in ("train", "test"):
        table = pa.table({"img": [row] * 20, "label": [*range(10)] * 2})
        (folder / "data").mkdir(exist_ok=True)
        pq.write_table(table, folder / "data" / f"{split}.parquet")


def test_a_relative_path_is_read_where_one_is(
    tmp_path: Path, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(data="parquet:data", subset=None, batch_size=4, device="cpu")
    seen = []
    for name, brightness in (("dark", 10), ("light", 200)):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name, brightness)
        monkeypatch.chdir(tmp_path / name)
        seen.append(assemble(recipe).dataset.train.images.max().item())
    assert seen == [10, 200]
