"""Small models for the runtime's tests, and the device that stands in for a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from halfconv.runtime import held
from halfconv.runtime.device import Host
from halfconv.runtime.engine import Engine
from halfconv.runtime.held import Settings
from halfconv.runtime.loading import Wishes
from halfconv.runtime.settings import Profile


def model(text: str, opset: int = 17) -> bytes:
    """Make a model from its text, without the head."""
    ir_version = 10 if opset > 20 else 8
    made = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString()
    return data


def squares(element: str = "float16") -> bytes:
    """y = x² row by row, s = Σ y."""
    return model(f"""g ({element}[n, 4] x) => ({element}[n, 4] y, {element}[n] s) <int64[1] ax = {{1}}> {{
        y = Mul(x, x)
        s = ReduceSum<keepdims = 0>(y, ax)
    }}""")


def mixed() -> bytes:
    """Rows depend on each other: y = x − the mean over the batch."""
    return model("""g (float[n, 4] x) => (float[n, 4] y) {
        m = ReduceMean<axes = [0]>(x)
        y = Sub(x, m)
    }""")


def cast_only(element: str) -> bytes:
    """BF16 at the edge and FP32 inside, which the CPU provider can run: y = 2x."""
    return model(
        f"""g ({element}[n, 3] x) => ({element}[n, 3] y) <float two = {{2}}> {{
        a = Cast<to = 1>(x)
        b = Mul(a, two)
        y = Cast<to = {16 if element == "bfloat16" else 10}>(b)
    }}""",
        22,
    )


def endless() -> bytes:
    """Multiplies 10⁸ times: nobody waits for that, and ONNX Runtime can stop it between two of them."""
    return model("""g (float[2, 2] x) => (float[2, 2] y) <int64 times = {100000000}, bool go = {1}> {
        y = Loop(times, go, x) <body = b (int64 i, bool c, float[2, 2] a) => (bool d, float[2, 2] e) {
            d = Identity(c)
            e = MatMul(a, a)
        }>
    }""")


def on_host(source: bytes | Path, profile: Profile | None = None, **settings: Any) -> Engine:
    """Return an engine that runs on the CPU as it would on a GPU: through buffers."""
    wishes = settings.pop("wishes", Wishes(("cpu",)))
    return Engine(source, profile or Profile(), Settings(wishes, **settings), device=lambda _: Host())


def with_graphs(monkeypatch: Any, source: bytes | Path, **settings: Any) -> Engine:
    """Return an engine that believes it has CUDA graphs; the CPU provider takes a graph's number for nothing."""
    load: Callable[..., Any] = held.load

    def loaded(source: Any, wishes: Wishes) -> Any:
        found = load(source, wishes)
        found.graph = wishes.graph
        return found

    monkeypatch.setattr(held, "load", loaded)
    return on_host(source, wishes=Wishes(("cpu",), graph=True), **settings)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call a function with 0, 1, …, each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
