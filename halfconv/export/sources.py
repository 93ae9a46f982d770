"""What is exported: a module with an example of its inputs, from ``package.module:factory``, or a ``.pt2`` program."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv.errors import InputError, UsageError
from halfconv.imports import import_function

if TYPE_CHECKING:
    import torch

    from halfconv.export.specs import ExampleInput

__all__ = ["Source", "from_factory", "from_module", "from_program"]

#: Axis -> name of a free dimension, by input.
Dims = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class Source:
    """A module and an example.

    Attributes:
        title: What messages call it.
        module: What computes.
        inputs: Input -> example, in the order of the module's parameters.
        by_name: Whether the module takes them by name; else by position.
        dims: Dimensions that are to stay free.
        program: The exported program that the module was loaded from.
        translations: Operators of its own -> how they are written in ONNX, as torch.onnx.export takes it.
        notes: Sentences for the report.
    """

    title: str
    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    by_name: bool
    dims: Dims = field(default_factory=dict)
    program: Any = None
    translations: Mapping[Any, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Compute the module's outputs, as it returns them."""
        import torch

        with torch.no_grad():
            return self.module(**inputs) if self.by_name else self.module(*inputs.values())


def from_factory(
    text: str, specs: Mapping[str, ExampleInput], example: Mapping[str, torch.Tensor], dims: Dims, seed: int
) -> Source:  # fmt: skip
    """Import the user's code, and call the factory.

    Args:
        text: ``package.module:factory``. It returns a module; or that and an example of its inputs, a tensor, a tuple, or a
            dictionary by name; or both and the free dimensions, ``{input: {axis: name}}``.
        specs: Inputs to make up; they win over the factory's.
        example: Tensors by name; those that no parameter claims are left out. They win, too.
        dims: Free dimensions, beside the factory's.
        seed: Of what is made up.

    Raises:
        UsageError: It cannot be imported, fails, or returns something else.
    """
    import torch

    factory = import_function(text, f"export {text}")
    torch.manual_seed(seed)
    try:
        made = factory()
    except Exception as error:
        raise UsageError(f"{text} fails: {type(error).__name__}: {error}", "a factory that works without arguments") from error
    module, given, own = (*made, None, None)[:3] if isinstance(made, tuple) and made else (made, None, None)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{text} returns a {type(module).__name__}, not a module", "torch.nn.Module, or (module, inputs)")
    if own is not None and not isinstance(own, Mapping):
        raise UsageError(f"{text} returns a {type(own).__name__} as free dimensions", "{'image': {0: 'batch'}}")
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: spec.tensor(generator) for name, spec in specs.items()}
    if example:
        taken, anything = _parameters(module)
        inputs |= {name: value for name, value in example.items() if name in taken or anything}
    free = {name: dict(axes) for name, axes in (own or {}).items()}
    for name, spec in specs.items():
        free[name] = {**free.get(name, {}), **spec.dims}
    for name, axes in dims.items():
        free[name] = {**free.get(name, {}), **axes}
    return from_module(module, inputs or given, free, text)


def from_module(module: torch.nn.Module, inputs: Any, dims: Dims, title: str) -> Source:
    """Bring a module and its example into order.

    Args:
        module: The module; it is set to evaluation.
        inputs: A tensor, a tuple, or a dictionary by name.
        dims: Free dimensions.
        title: What messages call it.

    Raises:
        UsageError: The inputs do not fit the module's parameters, or the dimensions the inputs.
    """
    import torch

    names, anything = _parameters(module)
    if inputs is None:
        raise UsageError(f"{title}: nothing says what its inputs are", "--input 'NAME=TYPE[DIM,…]', or --example FILE.npz")
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, (tuple, list)):
        spare = [f"input_{index}" for index in range(len(names), len(inputs))] if anything else []
        if len(inputs) > len(names) + len(spare):
            raise UsageError(f"{title}: {len(inputs)} inputs for {len(names)} parameters ({', '.join(names)})", "one for each")
        inputs = dict(zip([*names, *spare], inputs, strict=False))
        by_name = not spare
    elif isinstance(inputs, Mapping):
        foreign = [name for name in inputs if name not in names]
        if foreign and not anything:
            raise UsageError(f"{title}: its forward takes no '{foreign[0]}'", f"one of {', '.join(names)}")
        by_name = not foreign
        inputs = {name: inputs[name] for name in (names if by_name else inputs) if name in inputs}
    tensors = isinstance(inputs, Mapping) and all(isinstance(value, torch.Tensor) for value in inputs.values())
    if not tensors or not inputs:
        raise UsageError(f"{title}: its example inputs are no tensors", "a tensor, a tuple of tensors, or a dictionary of tensors")
    for name, axes in dims.items():
        if name not in inputs:
            raise UsageError(f"{title}: there is no input '{name}' to have a free dimension", f"one of {', '.join(inputs)}")
        if beyond := [axis for axis in axes if not 0 <= axis < inputs[name].dim()]:
            raise UsageError(f"{title}: '{name}' has no axis {beyond[0]}", f"0 to {inputs[name].dim() - 1}")
    return Source(title, module.eval(), inputs, by_name, {name: dict(axes) for name, axes in dims.items() if axes})


def from_program(path: Path, trust: bool, example: Mapping[str, torch.Tensor]) -> Source:
    """Load a program that ``torch.export.save`` wrote.

    Args:
        path: The ``.pt2`` file.
        trust: Whether its author is trusted: loading unpickles.
        example: Inputs by name, in place of those that the file holds.

    Raises:
        UsageError: It is not trusted, or there is no example of its inputs.
        InputError: It cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", "check the path")
    if not trust:
        raise UsageError(
            f"{path}: to load a .pt2 program is to unpickle parts of it, which can run any code",
            "--trust if you trust its author, or package.module:factory with --weights FILE.safetensors",
        )
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:
        words = (str(error).partition("\n")[0] or type(error).__name__)[:200]
        raise InputError(f"{path}: is no program that torch.export.save wrote: {words}", "save it again") from None
    names = [str(name) for name in program.graph_signature.user_inputs]
    arguments, keywords = program.example_inputs or ((), {})
    found = dict(zip(names, (*arguments, *keywords.values()), strict=False))
    found |= {name: value for name, value in example.items() if name in names}
    if set(found) != set(names) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UsageError(f"{path} holds no example of its inputs {', '.join(names)}", "--example FILE.npz with such arrays")
    source = Source(str(path), program.module(), {name: found[name] for name in names}, not arguments)
    return replace(source, program=program)


def _parameters(module: torch.nn.Module) -> tuple[list[str], bool]:
    """Return the names that forward takes, and whether it takes any number or name besides."""
    parameters = inspect.signature(module.forward).parameters.values()
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind not in various]
    return names, any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
