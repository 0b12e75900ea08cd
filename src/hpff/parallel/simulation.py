"""Several devices that work and send, simulated: when each piece of work begins and ends.

Each device does its pieces of work in a given order. A piece begins when its device is free and
all that it needs has arrived. Sending takes no time of the device; a link between two devices
carries one message after the other in each direction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Key = Hashable


@dataclass(frozen=True)
class Link:
    """What is between two devices.

    Attributes:
        latency: seconds from the last byte sent to its arrival.
        bandwidth: bytes a second, in each direction.
    """

    latency: float = 0.0
    bandwidth: float = math.inf


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work of one device.

    Attributes:
        key: what it is; no other piece has the same.
        seconds: that it takes.
        needs: pieces that must have ended, on any device; from another, what they gave arrives
            over the link.
        gives: bytes of the message that it sends to each other device that needs it.
        takes: bytes that are alive from its beginning on.
        frees: bytes that are gone at its end.
    """

    key: Key
    seconds: float
    needs: tuple[Key, ...] = ()
    gives: float = 0.0
    takes: float = 0.0
    frees: float = 0.0


class Span(NamedTuple):
    """When a piece of work was done, in seconds from the start."""

    work: Work
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each device did, in order."""

    devices: tuple[tuple[Span, ...], ...]

    @property
    def seconds(self) -> float:
        """When all is done."""
        return max(spans[-1].end for spans in self.devices if spans)

    def end_of(self, key: Key) -> float:
        """When a piece of work was done."""
        return next(s.end for spans in self.devices for s in spans if s.work.key == key)

    def busy(self) -> list[float]:
        """Of each device, which part of all the time it works."""
        return [sum(s.end - s.start for s in spans) / self.seconds for spans in self.devices]

    def peaks(self) -> list[float]:
        """Of each device the most bytes that are alive at once."""
        found = []
        for spans in self.devices:
            alive = most = 0.0
            for span in spans:
                alive += span.work.takes
                most = max(most, alive)
                alive -= span.work.frees
            found.append(most)
        return found


def simulate(devices: Sequence[Sequence[Work]], link: Link | None = None) -> Timeline:
    """Let devices do their work.

    Args:
        devices: of each its pieces of work, in order.
        link: between any two devices; None: messages arrive at once.

    Raises:
        ValueError: pieces of work wait for each other, or for one that is not there.
    """
    link = link or Link()
    homes = {work.key: place for place, works in enumerate(devices) for work in works}
    readers = _readers(devices, homes)
    arrived: dict[tuple[Key, int], float] = {}
    busy_until: dict[tuple[int, int], float] = defaultdict(float)
    done: list[list[Span]] = [[] for _ in devices]
    waiting = list(range(len(devices)))
    wakes: dict[tuple[Key, int], int] = {}
    while waiting:
        place = waiting.pop()
        for work in devices[place][len(done[place]) :]:
            missing = next((n for n in work.needs if (n, place) not in arrived), None)
            if missing is not None:
                wakes[missing, place] = place
                break
            free = done[place][-1].end if done[place] else 0.0
            start = max([free, *(arrived[need, place] for need in work.needs)])
            end = start + work.seconds
            done[place].append(Span(work, start, end))
            for reader in readers.get(work.key, ()):
                arrived[work.key, reader] = end
                if reader != place:
                    sent = max(end, busy_until[place, reader]) + work.gives / link.bandwidth
                    busy_until[place, reader] = sent
                    arrived[work.key, reader] = sent + link.latency
                if (work.key, reader) in wakes:
                    waiting.append(wakes.pop((work.key, reader)))
    if sum(map(len, done)) < sum(map(len, devices)):
        raise ValueError(f"these wait for ever: {sorted(map(str, (key for key, _ in wakes)))[:3]}")
    return Timeline(tuple(map(tuple, done)))


def _readers(devices: Sequence[Sequence[Work]], homes: dict[Key, int]) -> dict[Key, list[int]]:
    """Of each piece of work the devices that need it."""
    readers: dict[Key, list[int]] = {}
    for place, works in enumerate(devices):
        for work in works:
            for need in work.needs:
                if need in homes and place not in readers.setdefault(need, []):
                    readers[need].append(place)
    return readers
