"""Nests of tensors: inputs, outputs and targets of a model, which may be tensors, tuples, lists, mappings and anything in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["call", "map_tensors", "tensors_in", "to_device", "to_float", "to_half"]


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], nest: Any) -> Any:
    """Return a nest of the same form, with the function applied to every tensor; what is no tensor stays as it is.

    Tuples (named ones included), lists and mappings are looked into; a mapping of another class than ``dict`` is copied and its
    entries are set, as the model outputs of the transformers package need it.
    """
    if isinstance(nest, torch.Tensor):
        return function(nest)
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_tensors(function, entry) for entry in nest))
    if isinstance(nest, (tuple, list)):
        return type(nest)(map_tensors(function, entry) for entry in nest)
    if isinstance(nest, Mapping):
        changed: Any = {} if type(nest) is dict else copy.copy(nest)
        for key, entry in nest.items():
            changed[key] = map_tensors(function, entry)
        return changed
    return nest


def tensors_in(nest: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nest."""
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, (tuple, list)):
        for entry in nest:
            yield from tensors_in(entry)
    elif isinstance(nest, Mapping):
        for entry in nest.values():
            yield from tensors_in(entry)


def to_device(nest: Any, device: torch.device) -> Any:
    """Move the tensors of a nest; from pinned memory this does not wait."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), nest)


def to_float(nest: Any) -> Any:
    """Cast the FP16 and BF16 tensors of a nest to FP32."""
    return map_tensors(lambda tensor: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor, nest)


def to_half(nest: Any, dtype: torch.dtype) -> Any:
    """Cast the FP32 tensors of a nest to a half format."""
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor, nest)


def call(model: torch.nn.Module, inputs: Any) -> Any:
    """Run a model: a mapping gives its keyword arguments, a tuple or list its arguments, a tensor the only one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
