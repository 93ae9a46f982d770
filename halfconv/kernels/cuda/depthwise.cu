// Depthwise convolutions channels last. The LayerNormalization that follows them in ConvNeXt works in place on what they made.
//
// A block copies a tile of pixels, with what the filter reaches around it, and the filter into shared memory, for up to 96
// channels. A thread then computes a row of the tile for two neighbouring channels.
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

#include <algorithm>

#include "operators.h"

namespace halfconv {
namespace {

constexpr int kWarp = 32, kRows = 7, kEight = 8, kMostChannels = 96;
constexpr int64_t kMostImages = 65535;  // blocks along the third axis of a grid

struct Sizes {
  int height, width, channels;  // of the input and of the output
  int top, left;                // padding
  int chunk;                    // channels of a block
};

template <int Filter, int Columns>
__global__ void depthwise(const __half* __restrict__ x, const __half* __restrict__ w, const __half* __restrict__ b,
                          __half2* __restrict__ y, Sizes sizes) {
  constexpr int kHigh = kRows + Filter - 1, kWide = Columns + Filter - 1;
  extern __shared__ uint4 shared[];
  auto* inputs = reinterpret_cast<__half*>(shared);                                      // [kHigh, kWide, chunk]
  auto* weights = reinterpret_cast<float2*>(inputs + kHigh * kWide * sizes.chunk);       // [Filter, Filter, chunk / 2]
  const int across = (sizes.width + Columns - 1) / Columns;
  const int row = blockIdx.x / across * kRows, column = blockIdx.x % across * Columns, first = blockIdx.y * sizes.chunk;
  const int64_t image = int64_t{blockIdx.z} * sizes.height * sizes.width;
  const int pieces = sizes.chunk / kEight, pairs = sizes.chunk / 2;
  for (int i = threadIdx.x; i < kHigh * kWide * pieces; i += blockDim.x) {
    const int pixel = i / pieces, piece = i % pieces;
    const int h = row + pixel / kWide - sizes.top, v = column + pixel % kWide - sizes.left;
    const bool inside = h >= 0 && h < sizes.height && v >= 0 && v < sizes.width;
    const int64_t place = inside ? (image + int64_t{h} * sizes.width + v) * sizes.channels + first + piece * kEight : 0;
    __pipeline_memcpy_async(inputs + i * kEight, x + place, sizeof(uint4), inside ? 0 : sizeof(uint4));
  }
  __pipeline_commit();
  for (int i = threadIdx.x; i < Filter * Filter * pairs; i += blockDim.x)
    weights[i] = __half22float2(*reinterpret_cast<const __half2*>(w + i / pairs * sizes.channels + first + i % pairs * 2));
  __pipeline_wait_prior(0);
  __syncthreads();
  const int lane = threadIdx.x % pairs, line = threadIdx.x / pairs;
  if (line >= kRows || row + line >= sizes.height) return;
  float2 sums[Columns];
  const float2 bias = __half22float2(*reinterpret_cast<const __half2*>(b + first + lane * 2));
#pragma unroll
  for (int j = 0; j < Columns; ++j) sums[j] = bias;
#pragma unroll 1
  for (int ky = 0; ky < Filter; ++ky) {
    const auto* from = reinterpret_cast<const __half2*>(inputs) + (line + ky) * kWide * pairs + lane;
    float2 values[kWide], filter[Filter];
#pragma unroll
    for (int j = 0; j < kWide; ++j) values[j] = __half22float2(from[j * pairs]);
#pragma unroll
    for (int kx = 0; kx < Filter; ++kx) filter[kx] = weights[(ky * Filter + kx) * pairs + lane];
#pragma unroll
    for (int kx = 0; kx < Filter; ++kx)
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        sums[j].x = fmaf(values[j + kx].x, filter[kx].x, sums[j].x);
        sums[j].y = fmaf(values[j + kx].y, filter[kx].y, sums[j].y);
      }
  }
  __half2* to = y + ((image + int64_t{row + line} * sizes.width + column) * sizes.channels + first) / 2 + lane;
#pragma unroll
  for (int j = 0; j < Columns; ++j)
    if (column + j < sizes.width) to[j * sizes.channels / 2] = __float22half2_rn(sums[j]);
}

// The channels of a block: as many as fit, that divide all.
int chunk_of(int channels) {
  for (int chunk = kMostChannels; chunk > kEight; chunk -= kEight)
    if (channels % chunk == 0) return chunk;
  return kEight;
}

template <int Filter, int Columns>
void launch(const void* x, const void* w, const void* b, void* y, int64_t images, Sizes sizes, cudaStream_t stream) {
  constexpr int kHigh = kRows + Filter - 1, kWide = Columns + Filter - 1;
  sizes.chunk = chunk_of(sizes.channels);
  const int tiles = (sizes.height + kRows - 1) / kRows * ((sizes.width + Columns - 1) / Columns);
  const int threads = (kRows * sizes.chunk / 2 + kWarp - 1) / kWarp * kWarp;
  const size_t shared = (kHigh * kWide + 2 * Filter * Filter) * sizes.chunk * sizeof(__half);
  const auto kernel = depthwise<Filter, Columns>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), "shared memory");
  const int64_t image = int64_t{sizes.height} * sizes.width * sizes.channels;
  for (int64_t first = 0; first < images; first += kMostImages) {
    const dim3 blocks(tiles, sizes.channels / sizes.chunk, static_cast<unsigned>(std::min(images - first, kMostImages)));
    kernel<<<blocks, threads, shared, stream>>>(static_cast<const __half*>(x) + first * image, static_cast<const __half*>(w),
                                                static_cast<const __half*>(b),
                                                static_cast<__half2*>(y) + first * image / 2, sizes);
    check(cudaGetLastError(), "depthwise");
  }
}

}  // namespace

void DepthwiseConv::operator()(const ort::Run& run, Workspace&) const {
  const auto x = run.input(0), w = run.input(1), b = run.input(2);
  const auto filter = w.shape.size() == 4 && w.shape[0] == w.shape[1] && w.shape[2] == 1 ? w.shape[0] : 0;
  require(x.shape.size() == 4 && filter > 0 && w.last() == x.last() && b.shape == std::vector{x.last()},
          "the sizes of X, W and B differ");
  require(x.last() % kEight == 0, "channels are not in multiples of 8");
  require(pads_.size() == 4 && pads_[0] + pads_[2] == filter - 1 && pads_[1] + pads_[3] == filter - 1 && pads_[0] >= 0 &&
              pads_[1] >= 0,
          "the result is not as large as X");
  const auto y = run.output(0, x.shape);
  const int64_t images = x.shape[0], rows = x.rows();
  if (rows == 0) return;
  const Sizes sizes{static_cast<int>(x.shape[1]), static_cast<int>(x.shape[2]), static_cast<int>(x.last()),
                    static_cast<int>(pads_[0]), static_cast<int>(pads_[1]), 0};
  const auto stream = static_cast<cudaStream_t>(run.stream());
  const auto compute = [&](size_t way) {
    const auto call = [&](auto kernel) { kernel(x.data, w.data, b.data, y.data, images, sizes, stream); };
    if (filter == 3) return call(way == 0 ? launch<3, 14> : launch<3, 7>);
    if (filter == 5) return call(way == 0 ? launch<5, 14> : launch<5, 7>);
    if (filter == 7) return call(way == 0 ? launch<7, 14> : launch<7, 7>);
    throw std::runtime_error("depthwise filters must be 3, 5 or 7 high and wide");
  };
  static Cache<size_t> known;
  compute(*known.get({device(), images, sizes.height, sizes.width, sizes.channels, filter},
                     [&] { return std::make_shared<size_t>(fastest(stream, 2, compute)); }));
  if (norm_) normalise(y, run.input(3), run.input(4), y, epsilon_, stream);
}

}  // namespace halfconv
