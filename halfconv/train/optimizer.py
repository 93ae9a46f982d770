"""AdamW, in the form that asks least of the host: a GPU often waits for the host to launch what a step of training takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["adamw", "computed_as"]

#: Options of torch's optimizers that say by which kernels they compute: they follow from the device, which may be another later.
KERNELS = ("capturable", "foreach", "fused")


def adamw(weights: Iterable[torch.nn.Parameter], **options: Any) -> torch.optim.AdamW:
    """Make AdamW; for FP32 weights on a GPU the fused one, which updates all weights in a few kernels.

    torch's default there has a kernel for each operation of the update, and reads every weight's number of steps on the host. The
    fused kernels round otherwise in the last bit. Half weights, as of ``pure-fp16``, are left to the default: the fused kernels
    compute them in FP32, where the epsilon is not zero, and hide what goes wrong without master weights.

    Args:
        weights: What it is to update, where it will be then.
        options: Further arguments of ``torch.optim.AdamW`` but ``fused``.
    """
    held = list(weights)
    fused = all(weight.is_cuda and weight.dtype == torch.float32 for weight in held)
    return torch.optim.AdamW(held, fused=fused or None, **options)


def computed_as(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved state with the kernels of one that takes it up.

    torch's optimizers take the saved ones. But one that was made with the fused kernels is told on the GPU whether gradients
    overflowed, which the others do not take: it has to go on with its own.

    Args:
        optimizer: The one that takes it up.
        state: What ``state_dict()`` of another gave.
    """
    groups = [
        saved | {name: own[name] for name in KERNELS if name in own and name in saved}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    return state | {"param_groups": groups + state["param_groups"][len(groups) :]}
