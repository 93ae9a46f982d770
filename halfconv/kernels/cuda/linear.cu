// Products with bias, residual and activation: by cuBLASLt, and with GELU by kernels of our own, whichever is faster.
#include <cublasLt.h>
#include <cuda_fp16.h>

#include <limits>

#include "erf.h"
#include "operators.h"

namespace halfconv {
namespace {

constexpr int kCandidates = 12, kGeluThreads = 256, kEight = 8;

void check(cublasStatus_t code, const char* what) {
  if (code != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string(what) + ": " + cublasLtGetStatusString(code));
}

cublasLtHandle_t handle() {
  static Cache<cublasLtHandle_t> known;
  return *known.get({device()}, [] {
    auto made = std::make_shared<cublasLtHandle_t>();
    check(cublasLtCreate(made.get()), "cublasLtCreate");
    return made;
  });
}

// cuBLASLt's description of a product. It counts columns first, so that it computes Y^T = W^T X^T.
class Product {
 public:
  Product(int64_t m, int64_t n, int64_t k, Epilogue epilogue) : residual_(epilogue.residual) {
    check(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const auto kind = epilogue.activation == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, kind);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16F);
    layout(&w_, n, k), layout(&x_, k, m), layout(&y_, n, m);
    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const size_t most = kWorkspace;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    algorithms_.resize(kCandidates);
    int count = 0;
    const auto code = cublasLtMatmulAlgoGetHeuristic(handle(), operation_, w_, x_, y_, y_, preference, kCandidates,
                                                     algorithms_.data(), &count);
    cublasLtMatmulPreferenceDestroy(preference);
    check(code, "cublasLtMatmulAlgoGetHeuristic");
    algorithms_.resize(count);
  }
  Product(const Product&) = delete;
  ~Product() {
    for (auto layout : {w_, x_, y_}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(operation_);
  }

  size_t ways() const { return algorithms_.size(); }

  // Not for several threads at once: the bias is part of the description.
  void run(size_t way, const void* x, const void* w, const void* b, const void* r, void* y, void* workspace, cudaStream_t stream) {
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, b);
    const float one = 1, beta = residual_ ? 1 : 0;
    check(cublasLtMatmul(handle(), operation_, &one, w, w_, x, x_, &beta, residual_ ? r : y, y_, y, y_, &algorithms_[way].algo,
                         workspace, kWorkspace, stream),
          "cublasLtMatmul");
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    check(cublasLtMatmulDescSetAttribute(operation_, name, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }
  static void layout(cublasLtMatrixLayout_t* made, int64_t rows, int64_t columns) {
    check(cublasLtMatrixLayoutCreate(made, CUDA_R_16F, rows, columns, rows), "cublasLtMatrixLayoutCreate");
  }

  bool residual_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms_;
};

__global__ void gelu_in_place(uint4* values, int64_t count) {
  const int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (place >= count) return;
  uint4 eight = values[place];
  auto* pairs = reinterpret_cast<__half2*>(&eight);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    pairs[i] = __floats2half2_rn(gelu(pair.x), gelu(pair.y));
  }
  values[place] = eight;
}

struct Choice {
  Choice(int64_t m, int64_t n, int64_t k, Epilogue epilogue) : product(m, n, k, epilogue) {}
  std::mutex mutex;
  Product product;
  size_t way = SIZE_MAX;
};

}  // namespace

void Linear::operator()(const ort::Run& run, Workspace& workspace) const {
  const auto x = run.input(0), w = run.input(1), b = run.input(2);
  const auto r = epilogue_.residual ? run.input(3) : ort::Tensor{};
  require(w.shape.size() == 2 && x.shape.size() >= 2 && x.last() == w.shape[0] && b.shape == std::vector{w.last()},
          "the sizes of X, W and B differ");
  require(w.shape[0] % kEight == 0 && w.last() % kEight == 0, "W is not in multiples of 8");
  auto shape = x.shape;
  shape.back() = w.last();
  require(!epilogue_.residual || r.shape == shape, "R is not as large as Y");
  const auto y = run.output(0, shape);
  const int64_t m = x.rows(), n = w.last(), k = x.last();
  if (m == 0) return;
  const auto stream = static_cast<cudaStream_t>(run.stream());
  void* const scratch = workspace.of(stream);
  static Cache<Choice> known;
  const auto choice =
      known.get({device(), m, n, k, static_cast<int64_t>(epilogue_.activation), epilogue_.residual},
                [&] { return std::make_shared<Choice>(m, n, k, epilogue_); });
  const bool with_gelu = epilogue_.activation == Activation::kGelu;
  const size_t plain = choice->product.ways();
  const auto compute = [&](size_t way) {
    if (way >= plain) {
      require(m <= std::numeric_limits<int>::max(), "X has more rows than this kernel counts");
      gelu_product::run(way - plain, x.data, w.data, b.data, y.data, m, n, k, scratch, stream);
      return;
    }
    choice->product.run(way, x.data, w.data, b.data, r.data, y.data, scratch, stream);
    if (with_gelu) {
      const int64_t count = m * n / kEight;
      gelu_in_place<<<(count + kGeluThreads - 1) / kGeluThreads, kGeluThreads, 0, stream>>>(static_cast<uint4*>(y.data), count);
      check(cudaGetLastError(), "gelu");
    }
  };
  std::lock_guard<std::mutex> lock(choice->mutex);
  if (choice->way == SIZE_MAX) choice->way = fastest(stream, plain + (with_gelu ? gelu_product::ways() : 0), compute);
  compute(choice->way);
}

}  // namespace halfconv
