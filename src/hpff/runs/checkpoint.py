"""Checkpoints: all that a run needs to go on exactly, in one file, replaced atomically."""

from __future__ import annotations

import dataclasses
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from hpff.errors import UserError
from hpff.runs.atomic_files import write_atomically

FORMAT = "hpff checkpoint 1"
_MEND = "delete it to start the run again from its first epoch, or put a whole copy in its place"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `epoch` whole epochs."""

    recipe: dict[str, Any]
    epoch: int
    learner: dict[str, Any]
    optimizers: list[dict[str, Any]]
    random: dict[str, Any]
    history: list[dict[str, Any]]


def random_state() -> dict[str, Any]:
    """The state of torch's global generators: CPU, and every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global generators back; CUDA's only where there are as many devices."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint; on a full disk the one there before stays, with a UserError."""
    fields = {
        field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)
    }
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **fields}, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code in it; raises UserError if it is not one of ours.

    Tensors arrive on the CPU.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a checkpoint of hpff train; {_MEND}")
    del content["format"]
    names = {field.name for field in dataclasses.fields(Checkpoint)}
    if content.keys() != names:
        odd = ", ".join(sorted(names.symmetric_difference(map(str, content))))
        raise UserError(f"{path}: is not a whole checkpoint (missing or unknown: {odd}); {_MEND}")
    return Checkpoint(**content)


def _read(path: Path) -> Any:
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read this checkpoint ({error.strerror})") from error
    damaged = UserError(
        f"{path}: is truncated, damaged or of another program; nothing in it was run; {_MEND}"
    )
    if not zipfile.is_zipfile(content):  # Old-style pickles too stop here.
        raise damaged
    content.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file makes torch.load raise many types.
        if "unsupported global" in str(error).lower():
            raise UserError(
                f"{path}: holds a pickle that could run code, expected only tensors and plain "
                f"data; nothing in it was run; {_MEND}"
            ) from error
        raise damaged from error
