"""Half-precision training on PyTorch: FP32 master weights, loss scaling, precision policies, checkpoints, several processes.

>>> from halfconv.train import fit
>>> result = fit(model, loader, loss=cross_entropy, epochs=5, precision="bf16", evaluate=accuracy)  # doctest: +SKIP
"""

from __future__ import annotations

from halfconv.errors import EnvironmentProblem

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise EnvironmentProblem(f"training needs PyTorch ({_error})", "pip install 'halfconv[torch]'") from None

from halfconv.train.loop import fit
from halfconv.train.policy import AdaptivePolicy, PrecisionPolicy
from halfconv.train.result import Move, Result
from halfconv.train.semi import fit_semi, warm_up

__all__ = ["AdaptivePolicy", "Move", "PrecisionPolicy", "Result", "fit", "fit_semi", "warm_up"]
