// LayerNormalization over the last axis, of rows that are a multiple of 8 halves long.
//
// A row is read once, 16 bytes at a time, and stays in registers as it was read: a lane has four pieces of it at most. How many
// lanes a row gets follows its length, so that few idle: short rows share a warp, and the longest have a block each.
#include <cuda_fp16.h>

#include "operators.h"

namespace halfconv {
namespace {

constexpr int kWarp = 32, kThreads = 128, kEight = 8, kPieces = 4;

// The sum over the lanes of a row, the same in all of them. All threads of a block call it.
template <int Lanes>
__device__ float sum_of_row(float value) {
  constexpr int kShuffled = Lanes < kWarp ? Lanes : kWarp;
#pragma unroll
  for (int step = kShuffled / 2; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if constexpr (Lanes > kWarp) {
    static_assert(Lanes == kThreads, "warps of one row are the whole block");
    __shared__ float parts[Lanes / kWarp];
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int i = 0; i < Lanes / kWarp; ++i) value += parts[i];
  }
  return value;
}

struct Eight {
  float2 pairs[4];
};

__device__ inline Eight floats(uint4 piece) {
  const auto* halves = reinterpret_cast<const __half2*>(&piece);
  Eight made;
#pragma unroll
  for (int i = 0; i < 4; ++i) made.pairs[i] = __half22float2(halves[i]);
  return made;
}

// x may be y: a row is written by those who have read it.
template <int Lanes>
__global__ void __launch_bounds__(kThreads) layer_norm(const uint4* x, const uint4* __restrict__ gamma,
                                                       const uint4* __restrict__ beta, uint4* y, int64_t rows, int pieces,
                                                       float epsilon) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / Lanes) + threadIdx.x / Lanes, first = row * pieces;
  const int lane = threadIdx.x % Lanes, held = row < rows ? pieces : 0;  // lanes beyond the last row go along with nothing
  uint4 values[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = i * Lanes + lane;
    values[i] = piece < held ? x[first + piece] : uint4{0, 0, 0, 0};
  }
  float sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const Eight eight = floats(values[i]);
#pragma unroll
    for (const float2 pair : eight.pairs) sum += pair.x + pair.y;
  }
  // Sums of up to 4,096 equal halves are exact in FP32, and so is their division: rows of one number have no variance.
  const float width = static_cast<float>(pieces * kEight), mean = __fdiv_rn(sum_of_row<Lanes>(sum), width);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (i * Lanes + lane >= held) continue;
    const Eight eight = floats(values[i]);
#pragma unroll
    for (const float2 pair : eight.pairs) {
      const float a = pair.x - mean, b = pair.y - mean;
      squares = fmaf(a, a, fmaf(b, b, squares));
    }
  }
  const float factor = rsqrtf(__fdiv_rn(sum_of_row<Lanes>(squares), width) + epsilon);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = i * Lanes + lane;
    if (piece >= held) continue;
    const Eight eight = floats(values[i]), scale = floats(gamma[piece]), shift = floats(beta[piece]);
    uint4 result;
    auto* halves = reinterpret_cast<__half2*>(&result);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      halves[j] = __floats2half2_rn(fmaf((eight.pairs[j].x - mean) * factor, scale.pairs[j].x, shift.pairs[j].x),
                                    fmaf((eight.pairs[j].y - mean) * factor, scale.pairs[j].y, shift.pairs[j].y));
    y[first + piece] = result;
  }
}

// A grid has room for all rows that fit a device's memory.
template <int Lanes>
void launch(const void* x, const void* gamma, const void* beta, void* y, int64_t rows, int pieces, float epsilon,
            cudaStream_t stream) {
  constexpr int kRows = kThreads / Lanes;
  layer_norm<Lanes><<<static_cast<unsigned>((rows + kRows - 1) / kRows), kThreads, 0, stream>>>(
      static_cast<const uint4*>(x), static_cast<const uint4*>(gamma), static_cast<const uint4*>(beta), static_cast<uint4*>(y), rows,
      pieces, epsilon);
  check(cudaGetLastError(), "layer_norm");
}

}  // namespace

void normalise(const ort::Tensor& x, const ort::Tensor& gamma, const ort::Tensor& beta, const ort::Tensor& y, float epsilon,
               cudaStream_t stream) {
  const int64_t rows = x.rows(), width = x.last();
  require(gamma.shape == std::vector{width} && beta.shape == gamma.shape, "the sizes of gamma and beta differ from the last axis");
  require(width % kEight == 0, "the last axis is not a multiple of 8");
  require(width <= kPieces * kThreads * kEight, "at most 4096 values can be normalised");
  for (const auto* part : {&x, &gamma, &beta, &y})
    require(reinterpret_cast<uintptr_t>(part->data) % sizeof(uint4) == 0, "a tensor does not begin at a multiple of 16 bytes");
  if (rows == 0 || width == 0) return;
  const int pieces = static_cast<int>(width) / kEight;
  const auto call = [&](auto kernel) { kernel(x.data, gamma.data, beta.data, y.data, rows, pieces, epsilon, stream); };
  if (pieces <= 4 * kPieces) return call(launch<4>);
  if (pieces <= 8 * kPieces) return call(launch<8>);
  if (pieces <= 16 * kPieces) return call(launch<16>);
  if (pieces <= 32 * kPieces) return call(launch<32>);
  call(launch<kThreads>);
}

void LayerNorm::operator()(const ort::Run& run, Workspace&) const {
  const auto x = run.input(0), gamma = run.input(1), beta = run.input(2);
  require(!x.shape.empty(), "X has no axis");
  normalise(x, gamma, beta, run.output(0, x.shape), epsilon_, static_cast<cudaStream_t>(run.stream()));
}

}  // namespace halfconv
