// What the library uses of ONNX Runtime's C API: the places of functions in its table, which only ever grows at its end, and the
// layout of a custom operator as of version 17 of the API (ONNX Runtime 1.17). So it builds without ONNX Runtime's headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace ort {

constexpr uint32_t kVersion = 17;
constexpr int kFloat16 = 10;

struct Api;
struct Status;
struct KernelInfo;
struct KernelContext;
struct Value;
struct Shape;
struct Domain;
struct SessionOptions;
struct ShapeContext;

struct ApiBase {
  const Api* (*api)(uint32_t version);
  const char* (*version)();
};

// Places in the table of functions, as onnxruntime_c_api.h orders them.
enum Place : int {
  kCreateStatus = 0,
  kGetErrorMessage = 2,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetFloat = 85,
  kKernelInfoGetInt = 86,
  kContextInput = 90,
  kContextOutput = 91,
  kReleaseStatus = 93,
  kReleaseShape = 99,
  kKernelInfoGetInts = 163,
  kContextStream = 193,
};

template <class F>
F function(const Api* api, Place place) {
  return reinterpret_cast<F>(reinterpret_cast<void* const*>(api)[place]);
}

// The error that a status holds, if it does.
inline void check(const Api* api, Status* status) {
  if (status == nullptr) return;
  std::string text = function<const char* (*)(const Status*)>(api, kGetErrorMessage)(status);
  function<void (*)(Status*)>(api, kReleaseStatus)(status);
  throw std::runtime_error(text);
}

inline Status* failed(const Api* api, const char* text) {
  constexpr int kFail = 1;
  return function<Status* (*)(int, const char*)>(api, kCreateStatus)(kFail, text);
}

// A tensor of halves on the device.
struct Tensor {
  void* data = nullptr;
  std::vector<int64_t> shape;

  int64_t last() const { return shape.back(); }
  int64_t rows() const {
    int64_t count = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
    return count;
  }
};

// The attributes of a node.
class Attributes {
 public:
  Attributes(const Api* api, const KernelInfo* info) : api_(api), info_(info) {}

  float number(const char* name) const {
    float value = 0;
    check(api_, function<Status* (*)(const KernelInfo*, const char*, float*)>(api_, kKernelInfoGetFloat)(info_, name, &value));
    return value;
  }

  int64_t integer(const char* name) const {
    int64_t value = 0;
    check(api_, function<Status* (*)(const KernelInfo*, const char*, int64_t*)>(api_, kKernelInfoGetInt)(info_, name, &value));
    return value;
  }

  std::vector<int64_t> integers(const char* name) const {
    auto get = function<Status* (*)(const KernelInfo*, const char*, int64_t*, size_t*)>(api_, kKernelInfoGetInts);
    size_t count = 0;
    check(api_, get(info_, name, nullptr, &count));
    std::vector<int64_t> values(count);
    check(api_, get(info_, name, values.data(), &count));
    return values;
  }

 private:
  const Api* api_;
  const KernelInfo* info_;
};

// The inputs, outputs and stream of a run.
class Run {
 public:
  Run(const Api* api, KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const {
    const Value* value = nullptr;
    check(api_, function<Status* (*)(const KernelContext*, size_t, const Value**)>(api_, kContextInput)(context_, index, &value));
    Shape* shape = nullptr;
    check(api_, function<Status* (*)(const Value*, Shape**)>(api_, kGetTensorTypeAndShape)(value, &shape));
    size_t rank = 0;
    Tensor tensor;
    check(api_, function<Status* (*)(const Shape*, size_t*)>(api_, kGetDimensionsCount)(shape, &rank));
    tensor.shape.resize(rank);
    check(api_, function<Status* (*)(const Shape*, int64_t*, size_t)>(api_, kGetDimensions)(shape, tensor.shape.data(), rank));
    function<void (*)(Shape*)>(api_, kReleaseShape)(shape);
    tensor.data = data(const_cast<Value*>(value));
    return tensor;
  }

  Tensor output(size_t index, std::vector<int64_t> shape) const {
    Value* value = nullptr;
    auto make = function<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(api_, kContextOutput);
    check(api_, make(context_, index, shape.data(), shape.size(), &value));
    return Tensor{data(value), std::move(shape)};
  }

  void* stream() const {
    void* stream = nullptr;
    check(api_, function<Status* (*)(const KernelContext*, void**)>(api_, kContextStream)(context_, &stream));
    return stream;
  }

 private:
  void* data(Value* value) const {
    void* address = nullptr;
    check(api_, function<Status* (*)(Value*, void**)>(api_, kGetTensorMutableData)(value, &address));
    return address;
  }

  const Api* api_;
  KernelContext* context_;
};

// The table of functions that ONNX Runtime calls for an operator.
struct CustomOp {
  uint32_t version;
  void* (*create)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*inputs)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*outputs)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*input_arity)(const CustomOp*);
  int (*input_homogeneity)(const CustomOp*);
  int (*output_arity)(const CustomOp*);
  int (*output_homogeneity)(const CustomOp*);
  Status* (*create_checked)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_checked)(void*, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, ShapeContext*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias)(int**, int**);
  void (*release_alias)(int*, int*);
};

}  // namespace ort
