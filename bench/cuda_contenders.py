"""The ways to run a model that `bench/cuda.py` compares. Inputs and outputs of all lie on the device, at fixed places.

| who | is |
|---|---|
| ``fp32`` | the source in a plain session of ONNX Runtime, without TF32: the reference of all drift |
| ``fp32-tf32`` | the same with TF32, ONNX Runtime's default |
| ``onnxconverter-common``, ``ort-float16``, ``ort-optimizer``, ``modelopt`` | what these wrote, in a plain session |
| ``halfconv-portable`` | what ``halfconv convert`` writes, in a plain session |
| ``halfconv-standard`` | what ``halfconv convert --target cuda`` writes, in a plain session |
| ``halfconv-default`` | what ``halfconv convert --target cuda --kernels`` writes, in a plain session with the library of kernels |
| ``WHO+graph`` | the same with a CUDA graph |
| ``WHO+graph+nhwc`` | and with ``prefer_nhwc`` and an exhaustive search of cuDNN's algorithms: of models with convolutions |
| ``halfconv`` | that file with its profile, as ``halfconv bench --tune`` wrote it |
| ``halfconv-bind`` | the same through `halfconv.Session.bind` |
| ``torch-eager`` | the module in FP16 with FP16 inputs, its convolutions channels last |
| ``torch-compile`` | the same with ``torch.compile(mode="reduce-overhead")``; ``+sdpa`` and ``+eager`` are the kinds of attention |

Sessions are loaded at the level in the profile beside the model, which is ONNX Runtime's default where that works.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench import gpu_models
from bench.cuda_prepare import KERNELS, PEERS, Case
from bench.session import CUDA, plain_session

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
KINDS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
NHWC = {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "cudnn_conv_use_max_workspace": "1"}
REFERENCE = "fp32"


class Contender(Protocol):
    """A model that is ready, with inputs on the device."""

    def feed(self, feeds: Arrays) -> None:
        """Put other inputs of the same shapes where the model reads them."""

    def run(self) -> None:
        """Run once, and wait for the device."""

    def burst(self, count: int) -> None:
        """Run some times one after another, and wait for the device once."""

    def outputs(self) -> dict[str, Array]:
        """Copy the last run's outputs."""


class BindingLoop:
    """A session of ONNX Runtime on fixed buffers."""

    def __init__(
        self, model: Path, provider: str, feeds: Arrays, like: Arrays | None, *, options: Mapping[str, str] | None = None,
        level: str = "ORT_ENABLE_ALL", graph: bool = False, kernels: bool = False,
    ):  # fmt: skip
        import onnxruntime

        self._session = plain_session(model, provider, graph, options, level, kernels=kernels)
        types = {value.name: value.type for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        if like is None:  # a model of which nothing is known yet
            names = [value.name for value in self._session.get_outputs()]
            found = zip(names, self._session.run(names, dict(feeds)), strict=True)
            like = {name: value for name, value in found if isinstance(value, np.ndarray) and value.dtype != object}

        def placed(name: str, array: Array) -> Any:
            array = np.ascontiguousarray(array, KINDS.get(types[name], array.dtype))
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, provider, 0)

        self._given = {name: placed(name, array) for name, array in feeds.items() if name in types}
        self._made = {name: placed(name, np.zeros_like(array)) for name, array in like.items() if name in types}
        self._binding = self._session.io_binding()
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._made.items():
            self._binding.bind_ortvalue_output(name, value)
        self._loose = onnxruntime.RunOptions()
        self._loose.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def feed(self, feeds: Arrays) -> None:
        """Put other inputs."""
        put(self._given, feeds)

    def run(self) -> None:
        """Run once; ONNX Runtime waits for the device."""
        self._session.run_with_iobinding(self._binding)

    def burst(self, count: int) -> None:
        """Run some times; only the last run waits (ONNX Runtime waits for each replay of a graph all the same)."""
        for _ in range(count - 1):
            self._session.run_with_iobinding(self._binding, self._loose)
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> dict[str, Array]:
        """Copy the outputs."""
        return {name: value.numpy().copy() for name, value in self._made.items()}  # on a CPU it is the buffer itself


class BoundSession:
    """halfconv's session, with the profile beside the model."""

    def __init__(self, model: Path, provider: str, feeds: Arrays):
        from halfconv.runtime.session import Session

        self._session = Session(model, provider=provider)
        self._buffers = self._session.bind(feeds)

    def feed(self, feeds: Arrays) -> None:
        """Put other inputs."""
        put(self._buffers.inputs, feeds)

    def run(self) -> None:
        """Run once."""
        self._buffers.run()

    def burst(self, count: int) -> None:
        """Run some times; each waits."""
        for _ in range(count):
            self._buffers.run()

    def outputs(self) -> dict[str, Array]:
        """Copy the outputs."""
        return {name: value.numpy().copy() for name, value in self._buffers.outputs.items()}


class Torch:
    """A module of torch in FP16."""

    def __init__(self, key: str, provider: str, feeds: Arrays, attention: str, compiled: bool):
        import torch

        self._torch, self._device = torch, torch.device(provider)
        recipe = gpu_models.MODELS[key]
        self._name = recipe.output
        module = gpu_models.module(key, attention).to(self._device, torch.float16)
        torch.backends.cudnn.benchmark = True  # ONNX Runtime searches algorithms, too
        if recipe.convolutions:
            module = module.to(memory_format=torch.channels_last)
        self._module = torch.compile(module, mode="reduce-overhead") if compiled else module
        self._given = [self._tensor(array) for array in feeds.values()]
        self._made: Any = None

    def _tensor(self, array: Array) -> Any:
        tensor = self._torch.from_numpy(array.copy()).to(self._device)
        return tensor.half() if tensor.is_floating_point() else tensor

    def feed(self, feeds: Arrays) -> None:
        """Put other inputs."""
        for tensor, array in zip(self._given, feeds.values(), strict=True):
            tensor.copy_(self._tensor(array))

    def _once(self) -> None:
        with self._torch.no_grad():
            self._made = self._module(*self._given)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def run(self) -> None:
        """Run once, and wait."""
        self._once()
        self._wait()

    def burst(self, count: int) -> None:
        """Run some times, and wait once."""
        for _ in range(count):
            self._once()
        self._wait()

    def outputs(self) -> dict[str, Array]:
        """Copy the output."""
        return {self._name: self._made.float().cpu().numpy()}


def put(buffers: Mapping[str, Any], feeds: Arrays) -> None:
    """Write inputs into ONNX Runtime's buffers."""
    for name, value in buffers.items():
        value.update_inplace(np.ascontiguousarray(feeds[name], KINDS.get(value.data_type(), feeds[name].dtype)))


def lineup(case: Case, folder: Path, provider: str, feeds: Arrays) -> dict[str, Callable[[Arrays | None], Contender]]:
    """Return how to make each contender, by name, the reference first.

    Args:
        case: The model, and the batch size.
        folder: The folder that was prepared.
        provider: ``cuda``, or ``cpu``, which has neither graphs nor TF32.
        feeds: The inputs to begin with.

    Returns:
        Functions of arrays that have the outputs' shapes. They raise whatever goes wrong: FileNotFoundError for a missing file.
    """
    gpu, convolutions = provider == "cuda", case.recipe is None or case.recipe.convolutions
    made: dict[str, Callable[[Arrays | None], Contender]] = {}

    def loop(who: str, file: str, options: Mapping[str, str] | None = None, graph: bool = False) -> None:
        path = folder / case.key / f"{file}.onnx"

        def make(like: Arrays | None) -> Contender:
            existing(path, file)
            return BindingLoop(
                path, provider, feeds, like, options=options, level=_profile(path)["level"], graph=graph, kernels=file == KERNELS
            )  # fmt: skip

        made[who] = make

    loop(REFERENCE, "model", {"use_tf32": "0"})
    if gpu:
        loop("fp32-tf32", "model", {"use_tf32": "1"})
    for who in (*PEERS, "halfconv-portable", "halfconv-standard", "halfconv-default"):
        file = who.removesuffix("-default")
        loop(who, file)
        if gpu and who != "halfconv-portable":
            loop(f"{who}+graph", file, graph=True)
        if gpu and convolutions and who != "halfconv-portable":
            loop(f"{who}+graph+nhwc", file, NHWC, graph=True)
    path = folder / case.key / "halfconv.onnx"
    if path.is_file() and (known := _profile(path))["tuned"]:
        loop("halfconv", "halfconv", known["options"], known["graph"])
        made["halfconv-bind"] = lambda _: BoundSession(path, provider, feeds)
    if case.recipe is not None:
        kinds = ("sdpa", "eager") if case.recipe.attention else ("",)
        for compiled in (False, True) if gpu else (False,):
            for kind in kinds:
                who = ("torch-compile" if compiled else "torch-eager") + (f"+{kind}" if kind else "")
                made[who] = lambda _, kind=kind, compiled=compiled: Torch(case.key, provider, feeds, kind or "sdpa", compiled)
    return made


def existing(path: Path, who: str) -> None:
    """Raise FileNotFoundError with the reason that ``prepared.json`` gives, if there is no such file."""
    if path.is_file():
        return
    note = path.with_name("prepared.json")
    known = json.loads(note.read_text()) if note.is_file() else {}
    raise FileNotFoundError(known.get(who, {}).get("error") or "it was not prepared")


def _profile(model: Path) -> dict[str, Any]:
    """Return level, options, graph, and whether it was measured, of the profile beside a model."""
    from halfconv.runtime.settings import find_profile

    found = find_profile(model, None)
    return {
        "level": found.level, "options": found.options.get(CUDA, {}), "tuned": bool(found.buckets),
        "graph": any(bucket.cuda_graph for bucket in found.buckets),
    }  # fmt: skip
