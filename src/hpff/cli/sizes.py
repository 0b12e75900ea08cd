"""Sizes of memory, as people write and read them."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpff.errors import UserError

_UNITS = {"B": 1}
for _power, _letter in enumerate("kMGT", start=1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}iB": 1024**_power}


def bytes_of(text: str) -> int:
    """What `--budget` says.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z]+)", text.strip())
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if found is None or found[2].lower() not in units or float(found[1]) == 0:
        raise UserError(
            f"--budget: is {text!r}, expected a number and a unit such as 16GB (10^9 bytes each), "
            "24GiB (2^30) or 512MiB"
        )
    return int(float(found[1]) * units[found[2].lower()])


class Unit(NamedTuple):
    """What sizes of a table are counted in."""

    name: str
    bytes: int
    digits: int

    def of(self, count: int) -> str:
        """So many bytes, without the unit."""
        return f"{count / self.bytes:.{self.digits}f}"


def unit_for(most: int) -> Unit:
    """That of a table whose largest size it is, in bytes."""
    return Unit("GiB", 2**30, 2) if most >= 2**30 else Unit("MiB", 2**20, 1)
