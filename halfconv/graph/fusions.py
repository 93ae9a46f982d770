"""Which fusions a target gets, in which order: one explicit table.

Every target gets those that half precision needs, which stay within ONNX's operators. CUDA also gets ONNX Runtime's own operators,
as far as the CUDA provider runs them in half (`halfconv.graph.kernels`), the CPU provider runs them in FP32, so that ranges and the
reference can be measured, and the simulation knows how they round. What lacks one of these is listed all the same: it is found and
refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from halfconv.graph.attention import attention
from halfconv.graph.attention_onnx import onnx_attention, packed_attention
from halfconv.graph.constants import FoldConstantsPass
from halfconv.graph.convolutions import fold_batch_norm, fold_bias, fused_conv, group_norm
from halfconv.graph.fuse import CancelRootPass, FusionPass, PoolMeanPass
from halfconv.graph.gelus import bias_gelu, erf_gelu, quick_gelu, tanh_gelu
from halfconv.graph.kernels import on_cuda, table_source
from halfconv.graph.norms import FuseLayerNormPass, FuseRmsNormPass
from halfconv.graph.pads import fold_pad
from halfconv.graph.patches import patches
from halfconv.graph.projections import fold_scale
from halfconv.graph.rotary import grouped_heads, rotary
from halfconv.graph.rules import MS, Rule, RulePass
from halfconv.graph.sizes import Learned
from halfconv.graph.skips import skip_layer_norm, skip_rms_norm
from halfconv.graph.strided import drop_gather
from halfconv.graph.transposes import drop_cast, drop_reshape, drop_zero, merge_transposes

__all__ = ["FUSIONS", "Fusion", "fusions_for"]

#: Targets that get more than what half precision needs.
GPU, CUDA = frozenset({"cuda", "tensorrt"}), frozenset({"cuda"})


@dataclass(frozen=True, slots=True)
class Fusion:
    """One row.

    Attributes:
        name: What reports call it: as a rule, the operator that it makes.
        why: What it is good for, in one line.
        make: Makes its pass, given why the target cannot run what it makes ("" if it can), and what is known of sizes.
        targets: The targets that get it; None means all.
        contrib: Whether it makes an operator of ONNX Runtime's own.
        infers: Whether it makes shapes known, which are then inferred again.
    """

    name: str
    why: str
    make: Callable[[str, Learned], FusionPass]
    targets: frozenset[str] | None = None
    contrib: bool = False
    infers: bool = False


def _by(rule: Rule, *anchors: str) -> Callable[[str, Learned], FusionPass]:
    return lambda missing, learned: RulePass(anchors, rule, missing, learned)


def _plain(make: Callable[[], FusionPass]) -> Callable[[str, Learned], FusionPass]:
    return lambda missing, learned: make()


#: In this order: integers before what asks for pads and shapes, norms before the sums in front of them, GELU before its bias,
#: attention before the norms that follow from it.
FUSIONS: tuple[Fusion, ...] = (
    Fusion("Sqrt, Pow", "a root that is squared again overflows for nothing", _plain(CancelRootPass)),
    Fusion("Constant", "integers that no input decides are computed once", _plain(FoldConstantsPass), GPU, infers=True),
    Fusion("no-op Cast", "from FP32 to FP32, it hides what follows", _by(drop_cast, "Cast"), GPU),
    Fusion("no-op Identity", "it hides what follows", _by(drop_cast, "Identity"), GPU),
    Fusion("no-op Add", "of 0, it hides what follows", _by(drop_zero, "Add"), GPU),
    Fusion("no-op Reshape", "to the shape that there is, it hides what follows", _by(drop_reshape, "Reshape"), GPU),
    Fusion("no-op Gather", "of all elements in order, it computes with the batch size", _by(drop_gather, "Gather"), GPU),
    Fusion("Pad, Conv", "the border of zeros costs no pass over memory", _by(fold_pad, "Conv"), GPU, infers=True),
    Fusion("LayerNormalization", "its statistics stay FP32 inside one kernel", _plain(FuseLayerNormPass)),
    Fusion("RMSNormalization", "its mean of squares stays FP32 inside one kernel", _plain(FuseRmsNormPass)),
    Fusion("GlobalAveragePool", "its sum stays FP32 inside one kernel", _plain(PoolMeanPass)),
    Fusion("Conv, Add", "the bias costs no pass over memory", _by(fold_bias, "Add"), GPU),
    Fusion("Conv, BatchNormalization", "weights are folded in FP32", _by(fold_batch_norm, "BatchNormalization"), GPU),
    Fusion("MatMul, Mul", "a factor for each channel is folded into the weight", _by(fold_scale, "Mul"), GPU),
    Fusion("Transpose, Transpose", "copies that cancel", _by(merge_transposes, "Transpose"), GPU),
    Fusion("Conv, Transpose", "windows beside each other are one product, written as it is read", _by(patches, "Conv"), CUDA),
    Fusion("Gelu", "five passes over memory become one", _by(erf_gelu, "Erf"), CUDA, True),
    Fusion("FastGelu", "eight passes over memory become one", _by(tanh_gelu, "Tanh"), CUDA, True),
    Fusion("QuickGelu", "two passes over memory become one", _by(quick_gelu, "Sigmoid"), CUDA, True),
    Fusion("RotaryEmbedding", "seven passes over memory become one", _by(rotary, "Concat"), CUDA, True),
    Fusion("GroupQueryAttention", "keys are not repeated in memory", _by(grouped_heads, "Expand"), CUDA, True),
    Fusion("MultiHeadAttention", "scores never reach memory", _by(attention, "Softmax"), CUDA, True),
    Fusion("MultiHeadAttention", "ONNX's own is slow on CUDA", _by(onnx_attention, "Attention"), CUDA, True),
    Fusion("Attention", "three products become one", _by(packed_attention, "MultiHeadAttention"), CUDA, True),
    Fusion(
        "SkipSimplifiedLayerNormalization", "the sum is read once", _by(skip_rms_norm, "Div", "Mul", "RMSNormalization"), CUDA, True
    ),
    Fusion("SkipLayerNormalization", "the sum is read once", _by(skip_layer_norm, "LayerNormalization"), CUDA, True),
    Fusion("BiasGelu", "the sum is read once", _by(bias_gelu, "Gelu"), CUDA, True),
    Fusion("GroupNorm", "one kernel in place of four", _by(group_norm, "InstanceNormalization"), CUDA, True),
    Fusion("FusedConv", "the activation costs no pass over memory", _by(fused_conv, "Relu"), CUDA, True),
)


def fusions_for(target: str, to: ir.DataType) -> list[tuple[Fusion, FusionPass]]:
    """Return the fusions of a target, in order, with a fresh pass each.

    Args:
        target: The target.
        to: The half-precision type: what has no kernel for it is not fused.
    """
    wanted = [fusion for fusion in FUSIONS if fusion.targets is None or target in fusion.targets]
    learned: Learned = {}
    return [(fusion, fusion.make(_missing(fusion, to), learned)) for fusion in wanted]


def _missing(fusion: Fusion, to: ir.DataType) -> str:
    if not fusion.contrib or on_cuda(MS, fusion.name, 1, to):
        return ""
    return f"{table_source()} has no {to.name} CUDA kernel for {fusion.name}"
