// Registers the operators with ONNX Runtime: what SessionOptions.register_custom_ops_library calls.
#include <array>
#include <cstring>
#include <limits>

#include "operators.h"

namespace halfconv {
namespace {

constexpr const char* kDomain = "com.halfconv";
constexpr int kCapability = 9;

// A node's operator, the API that it came through, and what it works in.
template <class Operator>
struct Node {
  const ort::Api* api;
  Operator compute;
  Workspace workspace;
};

// An operator as ONNX Runtime sees it: the name, how many inputs, and how a node's operator is made of its attributes.
template <class Operator>
ort::CustomOp described(const char* (*name)(const ort::CustomOp*), size_t (*inputs)(const ort::CustomOp*),
                        ort::Status* (*create)(const ort::CustomOp*, const ort::Api*, const ort::KernelInfo*, void**)) {
  ort::CustomOp made;
  std::memset(&made, 0, sizeof made);
  made.version = ort::kVersion;
  made.name = name;
  made.provider = [](const ort::CustomOp*) { return "CUDAExecutionProvider"; };
  made.inputs = inputs;
  made.outputs = [](const ort::CustomOp*) -> size_t { return 1; };
  made.input_type = [](const ort::CustomOp*, size_t) { return ort::kFloat16; };
  made.output_type = made.input_type;
  made.input_characteristic = [](const ort::CustomOp*, size_t) { return 0; };
  made.output_characteristic = made.input_characteristic;
  made.input_memory = made.input_characteristic;  // 0: where the operator computes
  made.create_checked = create;
  made.compute_checked = [](void* node, ort::KernelContext* context) -> ort::Status* {
    auto& known = *static_cast<Node<Operator>*>(node);
    try {
      known.compute(ort::Run(known.api, context), known.workspace);
      return nullptr;
    } catch (const std::exception& error) {
      return ort::failed(known.api, error.what());
    }
  };
  made.destroy = [](void* node) { delete static_cast<Node<Operator>*>(node); };
  made.first_version = [](const ort::CustomOp*) { return 1; };
  made.last_version = [](const ort::CustomOp*) { return std::numeric_limits<int>::max(); };
  made.may_inplace = [](int**, int**) -> size_t { return 0; };
  made.alias = made.may_inplace;
  return made;
}

#define OPERATOR(name, Kind, count, ...)                                                                              \
  described<Kind>([](const ort::CustomOp*) { return name; }, [](const ort::CustomOp*) -> size_t { return count; },    \
                  [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** made) -> ort::Status* { \
                    try {                                                                                             \
                      *made = new Node<Kind>{api, Kind(ort::Attributes(api, info) __VA_OPT__(, ) __VA_ARGS__), {}};   \
                      return nullptr;                                                                                 \
                    } catch (const std::exception& error) {                                                           \
                      return ort::failed(api, error.what());                                                          \
                    }                                                                                                 \
                  })

const std::array kOperators{
    OPERATOR("Linear", Linear, 3, Epilogue{Activation::kNone, false}),
    OPERATOR("LinearRelu", Linear, 3, Epilogue{Activation::kRelu, false}),
    OPERATOR("LinearGelu", Linear, 3, Epilogue{Activation::kGelu, false}),
    OPERATOR("LinearAdd", Linear, 4, Epilogue{Activation::kNone, true}),
    OPERATOR("LinearAddRelu", Linear, 4, Epilogue{Activation::kRelu, true}),
    OPERATOR("Conv", Conv, 3, Epilogue{Activation::kNone, false}),
    OPERATOR("ConvRelu", Conv, 3, Epilogue{Activation::kRelu, false}),
    OPERATOR("ConvAdd", Conv, 4, Epilogue{Activation::kNone, true}),
    OPERATOR("ConvAddRelu", Conv, 4, Epilogue{Activation::kRelu, true}),
    OPERATOR("DepthwiseConv", DepthwiseConv, 3, false),
    OPERATOR("DepthwiseConvNorm", DepthwiseConv, 5, true),
    OPERATOR("LayerNorm", LayerNorm, 3),
    OPERATOR("PackedAttention", PackedAttention, 1, false),
    OPERATOR("PackedAttentionBias", PackedAttention, 2, true),
};

}  // namespace
}  // namespace halfconv

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const auto* api = base->api(ort::kVersion);
  if (api == nullptr) return ort::failed(base->api(1), "ONNX Runtime is older than 1.17");
  try {
    int major = 0;
    halfconv::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, halfconv::device()), "the device");
    if (major != halfconv::kCapability) throw std::runtime_error("the kernels are for GPUs of compute capability 9 (H100, H200)");
    ort::Domain* domain = nullptr;
    ort::check(api, ort::function<ort::Status* (*)(const char*, ort::Domain**)>(api, ort::kCreateCustomOpDomain)(
                        halfconv::kDomain, &domain));
    const auto add = ort::function<ort::Status* (*)(ort::Domain*, const ort::CustomOp*)>(api, ort::kCustomOpDomainAdd);
    for (const auto& made : halfconv::kOperators) ort::check(api, add(domain, &made));
    return ort::function<ort::Status* (*)(ort::SessionOptions*, ort::Domain*)>(api, ort::kAddCustomOpDomain)(options, domain);
  } catch (const std::exception& error) {
    return ort::failed(api, error.what());
  }
}
