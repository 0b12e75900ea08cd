"""Which modules each rank owns."""

from __future__ import annotations

from collections.abc import Sequence

from hpff.cutting.balance import lightest
from hpff.cutting.local_modules import Partition
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.methods import Method, name_of


def groups_of(
    partition: Partition,
    ranks: int,
    sizes: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
) -> list[int]:
    """How many modules each rank owns.

    Args:
        partition: the modules.
        ranks: 1 to their number.
        sizes: given numbers, which are checked.
        costs: of each module; by default the bytes that it saves and gives. The costliest rank
            costs the least.

    Raises:
        UserError: the sizes are not one for each rank, or do not add up to all modules.
    """
    modules = len(partition)
    if sizes is None:
        given = costs or [module.saved + module.output_bytes for module in partition]
        if len(given) != modules:
            raise UserError(f"costs are of {len(given)} modules, expected {modules}")
        return balanced(given, ranks)
    if len(sizes) != ranks or min(sizes) < 1 or sum(sizes) != modules:
        raise UserError(
            f"sizes are {list(sizes)}, expected {ranks} numbers of at least 1, one for each rank, "
            f"that add up to {modules} modules"
        )
    return list(sizes)


def balanced(costs: Sequence[float], ranks: int) -> list[int]:
    """How many adjacent modules each rank owns, so that the costliest rank costs the least."""
    unit = max(costs) / 1e6
    return lightest([max(1, round(cost / unit)) for cost in costs], ranks)


def owned_by(sizes: Sequence[int], rank: int) -> tuple[int, int]:
    """The first and the last module (from 1) of a rank."""
    last = sum(sizes[: rank + 1])
    return last - sizes[rank] + 1, last


def rank_of(sizes: Sequence[int], module: int) -> int:
    """The rank that owns a module (from 1)."""
    rank = 0
    while module > sum(sizes[: rank + 1]):
        rank += 1
    return rank


def check_shareable(learner: LocalLearner) -> None:
    """Refuse a learner whose modules cannot be on several ranks.

    Raises:
        UserError: the task is a segmentation; the method follows the next blocks; its modules are
            to work on several streams.
    """
    check_one_stream(learner)
    if learner.task != "classification":
        raise UserError(
            "ModuleParallel is for classification so far: an auxiliary head of a segmentation "
            "model may read what is on another rank; train the model in one process"
        )
    method = learner.auxiliary_networks.method
    if type(method).before_step is not Method.before_step:
        raise UserError(
            f"{name_of(method)}'s networks follow the model's next blocks, of which some are on "
            "another rank; use parallel=data, or another method"
        )


def check_one_stream(learner: LocalLearner) -> None:
    """Refuse a learner whose modules work on several streams, which no message waits for."""
    streams = learner.settings.streams
    if streams > 1:
        raise UserError(f"streams: is {streams}, expected 1 where several processes train")


def check_enough(ranks: int, learner: LocalLearner) -> None:
    """Refuse more ranks than modules."""
    modules = len(learner.partition)
    if ranks > modules:
        raise UserError(
            f"{ranks} ranks for {modules} modules; every rank needs one of its own: use fewer "
            "ranks, or more modules"
        )
