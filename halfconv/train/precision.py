"""The precisions that a model can be trained in, and what a device can do of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.train.tensors import to_half

__all__ = ["PRECISIONS", "Precision", "check_precision", "half_problem", "pick_device", "precision_named", "pure_half"]


@dataclass(frozen=True, slots=True)
class Precision:
    """How numbers are held in training.

    Attributes:
        name: ``fp32``, ``fp16``, ``bf16`` or ``pure-fp16``.
        half: The format that operators compute in; None if all is FP32.
        scaled: Whether the loss is scaled, so that small gradients do not vanish. BF16 has FP32's range and needs none.
        master: Whether weights, and what the optimizer keeps of them, are FP32.
    """

    name: str
    half: torch.dtype | None
    scaled: bool
    master: bool

    @property
    def mixed(self) -> bool:
        """Whether autocast picks the format of each operator."""
        return self.half is not None and self.master

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the model runs."""
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.half)


PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", None, scaled=False, master=True),
        Precision("fp16", torch.float16, scaled=True, master=True),
        Precision("bf16", torch.bfloat16, scaled=False, master=True),
        Precision("pure-fp16", torch.float16, scaled=False, master=False),
    )
}


def precision_named(name: str) -> Precision:
    """Return a precision.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in PRECISIONS:
        raise UsageError(f"no precision is called '{name}'", ", ".join(PRECISIONS))
    return PRECISIONS[name]


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device to train on.

    Args:
        name: ``auto`` takes a GPU if there is one, else the CPU; or a device of torch such as ``cpu``, ``cuda`` or ``cuda:1``.
        local_rank: Which of the processes on this machine this is; ``auto`` and ``cuda`` give each a GPU of its own.

    Raises:
        UsageError: torch knows no such device.
        EnvironmentProblem: The device is not here.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise UsageError(f"torch knows no device '{name}'", "auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"training on '{device.type}' is not supported", "auto, cpu or cuda")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EnvironmentProblem(f"device '{name}': torch {torch.__version__} finds no CUDA device", 'device="cpu"')
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        words = f"device '{name}': process {local_rank} needs GPU {index}, and {torch.cuda.device_count()} are here"
        raise EnvironmentProblem(words, "fewer processes, or another device")
    return torch.device("cuda", index)


def check_precision(precision: Precision, device: torch.device, model: torch.nn.Module) -> None:
    """Refuse what the device cannot compute, and weights that are no FP32 master weights.

    Raises:
        EnvironmentProblem: The GPU has no BF16.
        UsageError: Some of the model's weights are half already, or it has none to train.
    """
    if precision.half is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise EnvironmentProblem(f"{torch.cuda.get_device_name(device)} cannot compute in BF16", 'precision="fp16"')
    half = next((name for name, weight in model.named_parameters() if weight.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise UsageError(f"the model's weight '{half}' is half, where training starts from FP32 weights", "model.float()")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UsageError("the model has no weight that requires a gradient", "model.requires_grad_(True)")


@contextlib.contextmanager
def pure_half(model: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """Hold a model's weights in half, and cast its inputs, where there are to be no master weights; else do nothing.

    Afterwards the weights are FP32 again, with the values that they have in half.
    """
    half = precision.half
    if half is None or precision.master:
        yield
        return

    def cast(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return to_half(arguments, half), to_half(named, half)

    model.to(half)
    hook = model.register_forward_pre_hook(cast, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        model.float()


def half_problem(error: RuntimeError, precision: Precision, device: torch.device) -> EnvironmentProblem | None:
    """Say what it means if torch has no half kernel of an operator on the CPU; None if the error is another one."""
    words = str(error)
    missing = "not implemented for 'Half'" in words or "could not create a primitive" in words
    if precision.half is not torch.float16 or device.type != "cpu" or not missing:
        return None
    first = words.splitlines()[0].split(". ")[0]
    return EnvironmentProblem(f"torch {torch.__version__} cannot compute in FP16 here: {first}", 'precision="bf16", or a GPU')
