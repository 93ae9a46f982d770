// gelu(X W + B) in one kernel, of CUTLASS's parts for Hopper: GELU on the FP32 sums.
#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "erf.h"
#include "operators.h"

namespace halfconv::gelu_product {
namespace {

using Half = cutlass::half_t;
// Columns first, as for cuBLASLt: Y^T[n, m] = W^T[n, k] X^T[k, m], so that the bias belongs to rows.
using Columns = cutlass::layout::ColumnMajor;

// What CUTLASS calls with a value, or with several.
template <class Value>
struct Gelu {
  __device__ Value operator()(Value x) const { return halfconv::gelu(x); }
};

template <int Count>
struct Gelu<cutlass::Array<float, Count>> {
  __device__ cutlass::Array<float, Count> operator()(cutlass::Array<float, Count> values) const {
#pragma unroll
    for (int i = 0; i < Count; ++i) values[i] = halfconv::gelu(values[i]);
    return values;
  }
};

template <class Tile, class Cluster, class Mainloop, class Store>
struct Kernel {
  using Fusion = cutlass::epilogue::fusion::LinCombPerRowBiasEltAct<Gelu, Half, float, Half, void>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float,
      float, void, Columns, 8, Half, Columns, 8, Store, Fusion>::CollectiveOp;
  using Main = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Half, Columns, 8, Half, Columns, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Main, Epilogue>>;

  static void run(const void* x, const void* w, const void* b, void* y, int64_t m, int64_t n, int64_t k, void* workspace,
                  cudaStream_t stream) {
    const int rows = static_cast<int>(n), columns = static_cast<int>(m), depth = static_cast<int>(k);
    using K = typename Gemm::GemmKernel;
    const auto stride = [](auto kind, int a, int c) { return cutlass::make_cute_packed_stride(kind, {a, c, 1}); };
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {rows, columns, depth, 1},
        {static_cast<const Half*>(w), stride(typename K::StrideA{}, rows, depth), static_cast<const Half*>(x),
         stride(typename K::StrideB{}, columns, depth)},
        {{}, nullptr, stride(typename K::StrideC{}, rows, columns), static_cast<Half*>(y),
         stride(typename K::StrideD{}, rows, columns)}};
    arguments.epilogue.thread.alpha = 1;
    arguments.epilogue.thread.beta = 0;
    arguments.epilogue.thread.bias_ptr = static_cast<const Half*>(b);
    Gemm gemm;
    if (Gemm::get_workspace_size(arguments) > kWorkspace || gemm.can_implement(arguments) != cutlass::Status::kSuccess ||
        gemm.initialize(arguments, workspace, stream) != cutlass::Status::kSuccess ||
        gemm.run(stream) != cutlass::Status::kSuccess)
      throw std::runtime_error("this kernel does not fit these sizes");
  }
};

template <int A, int B, int C>
using Sizes = cute::Shape<cute::Int<A>, cute::Int<B>, cute::Int<C>>;
using Cooperative = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using PingPong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using StoreCooperative = cutlass::epilogue::TmaWarpSpecializedCooperative;
using Store = cutlass::epilogue::TmaWarpSpecialized;

using Way = void (*)(const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, void*, cudaStream_t);
constexpr Way kWays[] = {
    Kernel<Sizes<128, 256, 64>, Sizes<2, 1, 1>, Cooperative, StoreCooperative>::run,
    Kernel<Sizes<256, 128, 64>, Sizes<1, 2, 1>, Cooperative, StoreCooperative>::run,
    Kernel<Sizes<128, 128, 64>, Sizes<2, 1, 1>, PingPong, Store>::run,
    Kernel<Sizes<64, 256, 64>, Sizes<1, 1, 1>, PingPong, Store>::run,
    Kernel<Sizes<64, 64, 64>, Sizes<1, 1, 1>, PingPong, Store>::run,
};

}  // namespace

size_t ways() { return std::size(kWays); }

void run(size_t way, const void* x, const void* w, const void* b, void* y, int64_t m, int64_t n, int64_t k, void* workspace,
         cudaStream_t stream) {
  kWays[way](x, w, b, y, m, n, k, workspace, stream);
}

}  // namespace halfconv::gelu_product
