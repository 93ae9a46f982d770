"""halfconv's own operators, and the library of CUDA kernels that computes them; see `halfconv.kernels.operators`."""

from __future__ import annotations

from halfconv.runtime.kernels import KERNELS_VERSION, library

__all__ = ["KERNELS_VERSION", "library"]
