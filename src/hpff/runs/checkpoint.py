"""Checkpoints: all that a run needs to go on exactly, in one file, replaced atomically."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from hpff.errors import UserError
from hpff.runs import digests
from hpff.runs.atomic_files import write_atomically
from hpff.runs.checkpoint_content import fault

FORMAT = "hpff checkpoint 2"
_MEND = "delete it to start the run again from its first epoch, or put a whole copy in its place"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `epoch` whole epochs.

    Attributes:
        data: the whole name of the run's data, and their fingerprint.
        history: the metrics of each epoch.
    """

    recipe: dict[str, Any]
    data: dict[str, Any]
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
    """Write the checkpoint.

    Raises:
        UserError: the disk is full; the one there before stays.
    """
    fields = {
        field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)
    }
    archive = io.BytesIO()
    torch.save({"format": FORMAT, **fields}, archive)
    digests.seal_archive(archive)
    write_atomically(path, archive.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code in it; tensors arrive on the CPU.

    Its digest is checked before anything else, then the types and ranges of all that is in it.

    Raises:
        UserError: it is not one of ours, or not whole.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: is not a checkpoint of this hpff; {_MEND}")
    names = {field.name for field in dataclasses.fields(Checkpoint)}
    if content.keys() != names:
        odd = ", ".join(sorted(names.symmetric_difference(map(str, content))))
        raise UserError(f"{path}: is not a whole checkpoint (missing or unknown: {odd}); {_MEND}")
    wrong = fault(content)
    if wrong:
        raise UserError(f"{path}: is not a sound checkpoint ({wrong}); {_MEND}")
    return Checkpoint(**content)


def _read(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this checkpoint ({error.strerror})") from error
    damaged = UserError(
        f"{path}: is truncated, damaged or of another program; nothing in it was run; {_MEND}"
    )
    if not digests.is_whole_archive(content):
        raise damaged
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # A forged file makes torch.load raise many types.
        if "unsupported global" in str(error).lower():
            raise UserError(
                f"{path}: holds a pickle that could run code, expected only tensors and plain "
                f"data; nothing in it was run; {_MEND}"
            ) from error
        raise damaged from error
