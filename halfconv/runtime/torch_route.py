"""The shortest way of torch tensors through a CUDA graph: copies, graph and torch's own work follow each other on streams.

The CPU waits for nothing. As with torch's own operators, results are there for what follows on the stream that was current when the
model was run; who reads them otherwise waits for that stream, as `Tensor.cpu` does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import route
from .arrays import FLOATS, Spec
from .device import Stream
from .foreign import share

if TYPE_CHECKING:
    from .binding import Bound

__all__ = ["TorchRoute", "signature"]


def signature(feeds: Any, outputs: Sequence[str] | str | None, index: int) -> Any:
    """Return what decides how a request of torch tensors on a GPU runs; None for others."""
    if "torch" not in sys.modules:
        return None
    torch = sys.modules["torch"]

    def is_plain(value: Any) -> bool:
        return type(value) is torch.Tensor and _is_on(value, index) and value.layout is torch.strided

    return route.signature(feeds, outputs, is_plain)


def _is_on(value: Any, index: int) -> bool:
    return bool(value.is_cuda and value.device.index == index)


class TorchRoute:
    """A way through a graph's buffers for torch tensors whose types and shapes are known.

    Args:
        bound: The buffers; their graph is captured.
        stream: The stream that the graph runs on.
        index: The device.
        inputs: Input -> its buffer.
        outputs: Output -> its buffer, of those that are asked for.
        specs: Output -> its spec.
        wanted: The float type of outputs; None for the model's own.
    """

    def __init__(
        self, bound: Bound, stream: Stream, index: int, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        specs: Mapping[str, Spec], wanted: str | None,
    ):  # fmt: skip
        torch = sys.modules["torch"]
        self.bound, self._index = bound, index
        self._owner, self._stream = stream, torch.cuda.ExternalStream(stream.address, device=index)
        self._begun, self._ended = torch.cuda.Event(), torch.cuda.Event()  # recorded anew by each run: to make one takes longer
        self._inputs = [(name, share(value, "torch")) for name, value in inputs.items()]
        self._outputs = []
        for name, value in outputs.items():
            view = share(value, "torch")
            if specs[name].element == "bool" and view.dtype != torch.bool:  # DLPack had no bool once
                view = view.view(torch.bool)
            cast = wanted is not None and specs[name].element in FLOATS
            self._outputs.append((name, view, getattr(torch, wanted) if cast and wanted else view.dtype))

    @property
    def ready(self) -> bool:
        """Whether it can be taken now: the graph, by the thread that captured it."""
        return self.bound.captured == threading.get_ident()

    def forget(self) -> None:
        """Let go of all memory, once the bound is closed."""
        self._inputs, self._outputs = [], []

    def current(self) -> Any:
        """Return the calling thread's stream, which `run` takes."""
        return sys.modules["torch"].cuda.current_stream(self._index)

    def run(self, feeds: Mapping[str, Any], current: Any) -> dict[str, Any]:
        """Run on tensors of the types and shapes that it was made for.

        Args:
            feeds: Input -> tensor.
            current: The caller's stream, on which the tensors are made, and the results will be there.

        Returns:
            Output -> tensor.

        Raises:
            Exception: ONNX Runtime's, or torch's.
        """
        torch, ours = sys.modules["torch"], self._stream
        with torch.no_grad():
            with torch.cuda.stream(current):  # torch takes their memory again in this stream's order
                found = {name: torch.empty_like(view, dtype=dtype) for name, view, dtype in self._outputs}
            self._begun.record(current)
            ours.wait_event(self._begun)
            try:
                with torch.cuda.stream(ours):
                    for name, view in self._inputs:
                        view.copy_(feeds[name], non_blocking=True)
                    self.bound.launch()
                    for name, view, _ in self._outputs:
                        found[name].copy_(view, non_blocking=True)
            finally:
                self._ended.record(ours)
                current.wait_event(self._ended)  # before anything takes the place of inputs and results
        return found
