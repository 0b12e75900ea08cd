"""Two ranks that do not wait for each other: how far features lag, and what it costs in error.

    python benchmarks/replay.py [--seeds 3] [--write]    # about ten minutes on two cores

ResNet-20 of width 8 on the embedded digits, K = 4, DGL (k = 1, n = 1), two modules a rank, batch
64, SGD with momentum 0.9 at rate 0.05 without a schedule, 10 epochs. Both ranks take as many steps.
"Slow" is a rank that sleeps 0.05 s before each of them. The lag is by how many steps of the first
rank the second's features are behind the newest that had come; a replay is a step on a batch that
was used before. Errors are of the test split, mean and range over seeds. How the lags come out
depends on the machine and on what else runs on it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from hpff import LocalLearner, data, models
from hpff.parallel import ModuleParallel, ReplayParallel
from hpff.runs import machine

FILE = Path(__file__).with_suffix(".md")
BATCH, EPOCHS, SLEEP = 64, 10, 0.05
SETTINGS: list[tuple[str, int, int | None]] = [
    ("synchronous", 0, None),
    ("M = 1", 1, None),
    ("M = 4", 4, None),
    ("M = 4, the first rank slow", 4, 0),
    ("M = 4, the second rank slow", 4, 1),
]


def trained(
    seed: int, buffer: int, slow: int | None
) -> tuple[dict[str, Tensor] | None, Counter[int], int]:
    """The weights on rank 0; lags and replays of this rank. A buffer of 0 waits for each other."""
    learner = learner_of(seed)
    ranks: ModuleParallel
    if buffer:
        ranks = ReplayParallel(learner, buffer=buffer, sizes=(2, 2), seed=seed)
    else:
        ranks = ModuleParallel(learner, sizes=(2, 2), seed=seed, batches="sent")
    optimizers = {
        j: torch.optim.SGD(p, lr=0.05, momentum=0.9) for j, p in ranks.module_parameters.items()
    }

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    images, labels = pixels(data.load("digits").train)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH)[:-1]:
            if slow == ranks.rank:
                time.sleep(SLEEP)
            batch = (None, None) if ranks.rank else (images[chosen], labels[chosen])
            ranks.backward(*batch, on_module_done=done)
    state = ranks.state_dict()
    ranks.close()
    if isinstance(ranks, ReplayParallel):
        return state, ranks.lags, ranks.replays
    return state, Counter(), 0


def learner_of(seed: int) -> LocalLearner:
    torch.manual_seed(seed)
    return LocalLearner(
        models.create("resnet20", num_classes=10, in_channels=1, width=8),
        modules=4,
        example=pixels(data.load("digits").train)[0][:2],
        num_classes=10,
        cascade=1,
        patches=1,
    )


def pixels(split: Any) -> tuple[Tensor, Tensor]:
    return split.images.float() / 255 - 0.5, split.labels


def error(seed: int, state: dict[str, Tensor]) -> float:
    learner = learner_of(seed)
    learner.load_state_dict(state)
    images, labels = pixels(data.load("digits").test)
    with torch.no_grad():
        answers = learner.eval()(images).argmax(1)
    return 100 * (answers != labels).float().mean().item()


def main_of(rank: int, port: int, seeds: int, queue: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, buffer, slow in SETTINGS:
        errors, lags, replays = [], Counter[int](), 0
        for seed in range(seeds):
            state, own, again = trained(seed, buffer, slow)
            lags += own
            replays += again
            if state is not None:
                errors.append(error(seed, state))
            dist.barrier()
        queue.put((rank, name, errors, dict(lags), replays))
    dist.barrier()
    dist.destroy_process_group()


def row(name: str, errors: list[float], lags: dict[int, int], replays: int) -> str:
    steps = sum(lags.values())
    mean = sum(lag * count for lag, count in lags.items()) / steps if steps else 0.0
    measured = f"{mean:.2f} | {max(lags)} | {100 * replays / steps:.0f} %" if steps else "– | – | –"
    error = f"{statistics.mean(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})"
    return f"| {name} | {measured} | {error} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--port", type=int, default=29_521)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(main_of, (given.port, given.seeds, queue), nprocs=2)
    found = [queue.get() for _ in range(2 * len(SETTINGS))]
    first = {name: errors for rank, name, errors, _, _ in found if rank == 0}
    second = {name: (lags, again) for rank, name, _, lags, again in found if rank == 1}
    rows = [row(name, first[name], *second[name]) for name, _, _ in SETTINGS]
    head = ["| | mean lag | largest lag | replays | test error, % |", "| --- |" + " --- |" * 4]
    table = "\n".join([*head, *rows])
    print(table)
    if given.write:
        how = f"{given.seeds} seeds. {machine.describe()}"
        FILE.write_text(f"{__doc__}\n\n{how}\n\n{table}\n")


if __name__ == "__main__":
    main()
