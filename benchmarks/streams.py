"""How short a step could be on several streams, and what it takes: no device is needed.

    python benchmarks/streams.py [--networks resnet32,resnet110] [--batch 1024] [--write]

Every operation of a real step on the CPU is put on the stream where it would be launched, and lasts
there as long as its bytes take a device (2 TB/s in bf16, and 4 microseconds for each kernel). The
streams wait for each other as they would. "shortest" is the time to the end of the last one over
backprop's: what streams could reach if kernels never hindered each other. Kernels do, so that a
device is slower; the column says how many streams are worth having. Beside it the planned peak.
With --write the tables are put into benchmarks/streams.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpff import LocalLearner, models
from hpff.engine.streams import SeveralStreams, Streams
from hpff.memory import Strategy, Workload, plan
from hpff.runs import machine
from hpff.settings import LocalSettings

HERE = Path(__file__).parent
NUMBERS = (1, 2, 3, 4, 6, 8)
NETWORKS = {"resnet32": 16, "resnet110": 55}  # in so many modules
SETTINGS = {
    "dgl": LocalSettings.from_label("dgl"),
    "dgl+hpff": LocalSettings.from_label("dgl+hpff"),
    "balanced, recompute=never": LocalSettings(preset="balanced", recompute="never"),
    "accurate, recompute=never": LocalSettings(preset="accurate", recompute="never"),
    "accurate": LocalSettings(preset="accurate"),
}
_SAMPLES = 4  # that really run
_LAUNCH, _BYTES_PER_SECOND = 4e-6, 2e12


class Stream:
    """The time when everything that was launched on it is done."""

    def __init__(self) -> None:
        self.done = 0.0


class Device:
    """Streams that keep time (a `hpff.engine.streams.Machine`)."""

    def __init__(self) -> None:
        self.main = self._current = Stream()

    def current(self) -> Stream:
        return self._current

    def switch(self, stream: Stream) -> None:
        self._current = stream

    def create(self, number: int, beside: Stream) -> list[Stream]:
        return [Stream() for _ in range(number)]

    def mark(self, stream: Stream) -> float:
        return stream.done

    def wait(self, stream: Stream, mark: float) -> None:
        stream.done = max(stream.done, mark)

    def holds(self, tensor: Tensor) -> bool:
        return True

    def leave(self) -> None:
        """Nothing else was changed."""


class Clock(TorchDispatchMode):
    """Lets every operation take its time on the stream where it is launched."""

    def __init__(self, device: Device, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._growth = batch / _SAMPLES / 2  # from fp32 to bf16

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            return output  # a view launches nothing
        touched = (leaf for leaf in tree_leaves((args, kwargs, output)) if _has_batch(leaf))
        seconds = sum(tensor.nbytes for tensor in touched) * self._growth / _BYTES_PER_SECOND
        self._device.current().done += _LAUNCH + seconds
        return output


def _has_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[0] % _SAMPLES == 0


def seconds(network: str, settings: LocalSettings, streams: int, batch: int) -> float:
    """From the start of a step to the end of all its streams."""
    torch.manual_seed(0)
    device = Device()
    learner = LocalLearner.from_settings(
        models.create(network, 10), settings, example=torch.zeros(2, 3, 32, 32), num_classes=10
    )
    learner.phase.streams_on = lambda _, number: (
        SeveralStreams(number, device) if number > 1 else Streams()
    )
    images, targets = torch.randn(_SAMPLES, 3, 32, 32), torch.arange(_SAMPLES)
    with Clock(device, batch):
        learner.backward(images, targets)
    return device.main.done


def table(network: str, batch: int) -> str:
    modules = NETWORKS[network]
    workload = Workload(network, modules, precision="bf16")
    base = seconds(network, LocalSettings.from_label("bp"), 1, batch)
    head = [f"{word}, {number}" for word in ("shortest", "GiB") for number in NUMBERS]
    lines = [f"| {network} in {modules} | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
    for name, settings in SETTINGS.items():
        rows = [Strategy(settings).with_settings(streams=number) for number in NUMBERS]
        times = [
            seconds(network, row.with_settings(modules=modules).settings, number, batch)
            for row, number in zip(rows, NUMBERS, strict=True)
        ]
        peaks = [row.peak or 0 for row in plan(workload, batch=batch, strategies=rows).rows]
        cells = [f"{time / base:.2f}" for time in times]
        cells += [f"{peak / 2**30:.2f}" for peak in peaks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    peak = plan(workload, batch=batch, strategies=[Strategy.of()]).rows[0].peak or 0
    lines.append(f"\nBackprop: 1, {peak / 2**30:.2f} GiB.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help="write benchmarks/streams.md")
    given = parser.parse_args()
    made = "\n\n".join(table(name, given.batch) for name in given.networks.split(","))
    print(made)
    if given.write:
        about = ", ".join(f"{key} {value}" for key, value in machine.describe().items())
        (HERE / "streams.md").write_text(f"{__doc__}\n{made}\n\nMachine: {about}.\n")


if __name__ == "__main__":
    main()
