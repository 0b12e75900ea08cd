"""The state of the generators that a step on one device draws from, as one tensor."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def get_random_state(device: torch.device) -> Tensor:
    """States of torch's global generators: the CPU's, and the device's own (uint8, (N,))."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Take back what ``get_random_state`` gave on a device of the same kind."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[own:].clone(), device)


def step_seed(seed: int, step: int) -> int:
    """What to seed torch's global generators with before a training step.

    So the random numbers of a step depend on nothing before it.

    Args:
        seed: of the run.
        step: counted over the run, from 1.
    """
    digest = hashlib.blake2b(f"step {seed} {step}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
