"""Random numbers in training: seeds that depend on the epoch alone, and the generators' states for checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["capture_rng", "restore_rng", "seed_rng"]


def seed_rng(*seeds: int) -> None:
    """Seed the generators of Python, numpy and torch, on all devices, with a number that depends on all the seeds."""
    mixed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def capture_rng(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators as tensors and plain data, which load without unpickling."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # the legacy form is a tuple
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Take the generators back to states that were captured."""
    random.setstate(state["python"])
    kind, keys, *more = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *more))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
