"""Whether all ranks are about to do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from hpff.errors import AgreedError, UserError
from hpff.learner import LocalLearner
from hpff.methods import Method
from hpff.schema import Component
from hpff.settings import LocalSettings

_PLAIN = (str, int, float, bool, bytes, type(None))

_MOST_BYTES = 1000  # of a refusal that every rank is told


def check_same(what: str, content: str, group: Any = None) -> None:
    """Compare a text with that of the group's first rank; every rank of it must call it.

    Args:
        what: the text is about, in words.
        content: the text.
        group: a process group; None: all ranks.

    Raises:
        UserError: some rank has another text; on every rank of the group (AgreedError where it is
            of all).
    """
    own = torch.frombuffer(bytearray(hashlib.sha256(content.encode()).digest()), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    ranks = dist.get_process_group_ranks(group)
    pairs = zip(ranks, everyone, strict=True)
    others = [rank for rank, each in pairs if not torch.equal(each, everyone[0])]
    if others:
        listed = ", ".join(map(str, others))
        kind = AgreedError if group is None else UserError
        raise kind(
            f"ranks have different {what}: those of rank {listed} are not those of rank "
            f"{ranks[0]}; start every rank with the same command and the same files"
        )


@contextmanager
def refused_together() -> Iterator[None]:
    """Inside, what one rank refuses is refused by all, before any waits for that one.

    Every rank must enter it, and wait for no other inside.

    Raises:
        AgreedError: the first rank that raised something gave this reason; on every rank.
    """
    error = None
    try:
        yield
    except Exception as found:  # noqa: BLE001 - raised below, once all know
        error = found
    said = next(filter(None, _said_by_all(error)), "")
    if error and not isinstance(error, UserError):
        raise error
    if said:
        raise AgreedError(said) from error


def _said_by_all(error: Exception | None) -> list[str]:
    """What each rank has to say of its error, in order; nothing where it has none."""
    text = ""
    if error:
        text = str(error) if isinstance(error, UserError) else f"rank {dist.get_rank()}: {error!r}"
    content = " ".join(text.split()).encode()[:_MOST_BYTES]
    own = torch.frombuffer(bytearray(content.ljust(_MOST_BYTES)), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return [bytes(each.tolist()).decode(errors="ignore").strip() for each in everyone]


def described(learner: LocalLearner) -> str:
    """What two ranks' learners must have in common, the weights apart; in any process the same."""
    settings = _comparable(learner.settings)
    return f"{settings} {learner.reach} {learner.partition}"


def _comparable(value: Any) -> Any:
    """Plain data that stands for a value, without addresses; of other objects their class.

    A method that is an object is its class and what is plain of its public attributes.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return [[str(key), _comparable(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_comparable(each) for each in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not isinstance(value, LocalSettings | Component | Method):
        return name
    public = {key: each for key, each in vars(value).items() if not key.startswith("_")}
    return [name, _comparable(dict(sorted(public.items())))]
