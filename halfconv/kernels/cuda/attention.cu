// Attention over queries, keys and values that lie side by side, by cuDNN: nothing is transposed or copied before it.
#include "graphs.h"
#include "operators.h"

namespace halfconv {
namespace {

enum Number : int64_t { kQ = 1, kK, kV, kBias, kY };

}  // namespace

void PackedAttention::operator()(const ort::Run& run) const {
  const auto x = run.input(0);
  const auto bias = bias_ ? run.input(1) : ort::Tensor{};
  const auto batch = x.shape[0], length = x.shape[1], width = x.shape[2] / 3, size = width / heads_;
  const auto y = run.output(0, {batch, length, width});
  if (batch * length == 0) return;
  std::vector<int64_t> key{device(), batch, length, width, heads_, __builtin_bit_cast(int32_t, scale_)};
  key.insert(key.end(), bias.shape.begin(), bias.shape.end());
  static Cache<Graph> known;
  const auto graph = known.get(key, [&] {
    return std::make_shared<Graph>([&](fe::graph::Graph& made) {
      const auto part = [&](Number number) {
        return made.tensor(fe::graph::Tensor_attributes()
                               .set_uid(number)
                               .set_dim({batch, heads_, length, size})
                               .set_stride({length * 3 * width, size, 3 * width, 1}));
      };
      auto options = fe::graph::SDPA_attributes().set_generate_stats(false).set_attn_scale(scale_);
      if (bias_) {
        const auto& dims = bias.shape;
        options.set_bias(made.tensor(fe::graph::Tensor_attributes().set_uid(kBias).set_dim(dims).set_stride(
            {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1})));
      }
      auto [value, none] = made.sdpa(part(kQ), part(kK), part(kV), options);
      value->set_output(true).set_uid(kY).set_dim({batch, heads_, length, size}).set_stride({length * width, size, width, 1});
    });
  });
  auto* first = static_cast<char*>(x.data);
  const auto step = width * 2;  // bytes of halves
  Graph::Pointers pointers{{kQ, first}, {kK, first + step}, {kV, first + 2 * step}, {kY, y.data}};
  if (bias_) pointers[kBias] = bias.data;
  graph->run(pointers, static_cast<cudaStream_t>(run.stream()));
}

}  // namespace halfconv
