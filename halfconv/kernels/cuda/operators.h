// The operators. All tensors are halves; sums are FP32 and are rounded once, at the end, but for a norm and the GELU of one way of
// several, which read them rounded.
#pragma once

#include "device.h"
#include "ort.h"

namespace halfconv {

enum class Activation { kNone, kRelu, kGelu };

// What follows a product or a convolution and its bias, before the result is rounded: the residual is added, then the activation.
struct Epilogue {
  Activation activation = Activation::kNone;
  bool residual = false;
};

// Y[rows, N] = act(X[rows, K] W[K, N] + B[N] + R[rows, N])
class Linear {
 public:
  Linear(const ort::Attributes&, Epilogue epilogue) : epilogue_(epilogue) {}
  void operator()(const ort::Run& run, Workspace& workspace) const;

 private:
  Epilogue epilogue_;
};

// Y[n, H', W', M] = act(X[n, H, W, C] * W[M, kh, kw, C] + B[M] + R[n, H', W', M])
class Conv {
 public:
  Conv(const ort::Attributes& attributes, Epilogue epilogue)
      : strides_(attributes.integers("strides")), pads_(attributes.integers("pads")),
        dilations_(attributes.integers("dilations")), epilogue_(epilogue) {}
  void operator()(const ort::Run& run, Workspace& workspace) const;

 private:
  std::vector<int64_t> strides_, pads_, dilations_;
  Epilogue epilogue_;
};

// Y[n, H, W, C] = X[n, H, W, C] * W[kh, kw, 1, C] + B[C], each channel by itself; normalised over the channels if asked for.
class DepthwiseConv {
 public:
  DepthwiseConv(const ort::Attributes& attributes, bool norm)
      : pads_(attributes.integers("pads")), norm_(norm), epsilon_(norm ? attributes.number("epsilon") : 0) {}
  void operator()(const ort::Run& run, Workspace& workspace) const;

 private:
  std::vector<int64_t> pads_;
  bool norm_;
  float epsilon_;
};

// Y = gamma (X - mean) / sqrt(variance + epsilon) + beta, with mean and variance of the last axis
class LayerNorm {
 public:
  explicit LayerNorm(const ort::Attributes& attributes) : epsilon_(attributes.number("epsilon")) {}
  void operator()(const ort::Run& run, Workspace& workspace) const;

 private:
  float epsilon_;
};

// The same, for other operators; x may be y.
void normalise(const ort::Tensor& x, const ort::Tensor& gamma, const ort::Tensor& beta, const ort::Tensor& y, float epsilon,
               cudaStream_t stream);

// Y[b, s, h d] = softmax(scale Q K^T + bias) V, with Q, K, V side by side in X[b, s, 3 h d]
class PackedAttention {
 public:
  PackedAttention(const ort::Attributes& attributes, bool bias)
      : heads_(attributes.integer("num_heads")), scale_(attributes.number("scale")), bias_(bias) {}
  void operator()(const ort::Run& run, Workspace& workspace) const;

 private:
  int64_t heads_;
  float scale_;
  bool bias_;
};

// Y = gelu(X W + B) by kernels that are compiled in; ways() of them. Throws where a way does not fit the sizes.
namespace gelu_product {
size_t ways();
void run(size_t way, const void* x, const void* w, const void* b, void* y, int64_t m, int64_t n, int64_t k, void* workspace,
         cudaStream_t stream);
}  // namespace gelu_product

}  // namespace halfconv
