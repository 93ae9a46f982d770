// Convolutions channels last with bias, residual and activation, in one kernel of cuDNN.
#include "graphs.h"
#include "operators.h"

namespace halfconv {
namespace {

enum Number : int64_t { kX = 1, kW, kB, kR, kY };

using Dims = std::vector<int64_t>;

// The strides of a tensor [n, c, h, w] whose channels lie side by side.
Dims strides(const Dims& dims) {
  const auto c = dims[1], h = dims[2], w = dims[3];
  return {c * h * w, 1, c * w, c};
}

std::shared_ptr<fe::graph::Tensor_attributes> tensor(fe::graph::Graph& graph, Number number, const Dims& dims) {
  return graph.tensor(fe::graph::Tensor_attributes().set_uid(number).set_dim(dims).set_stride(strides(dims)));
}

}  // namespace

void Conv::operator()(const ort::Run& run, Workspace& workspace) const {
  const auto x = run.input(0), w = run.input(1), b = run.input(2);
  const auto r = epilogue_.residual ? run.input(3) : ort::Tensor{};
  require(x.shape.size() == 4 && w.shape.size() == 4 && x.shape[3] == w.shape[3] && b.shape == std::vector{w.shape[0]},
          "the sizes of X, W and B differ");
  require(strides_.size() == 2 && pads_.size() == 4 && dilations_.size() == 2 && strides_[0] > 0 && strides_[1] > 0,
          "strides, pads and dilations are not those of an image");
  const auto out = [&](int axis) {
    const auto reach = dilations_[axis] * (w.shape[1 + axis] - 1) + 1;
    const auto room = x.shape[1 + axis] + pads_[axis] + pads_[2 + axis] - reach;
    return room < 0 ? 0 : room / strides_[axis] + 1;
  };
  const Dims found{x.shape[0], out(0), out(1), w.shape[0]};
  require(found[1] > 0 && found[2] > 0, "the filter is larger than the image");
  require(!epilogue_.residual || r.shape == found, "R is not as large as Y");
  const auto y = run.output(0, found);
  if (found[0] == 0) return;
  Dims key{device(), static_cast<int64_t>(epilogue_.activation), epilogue_.residual};
  for (const auto* part : {&x.shape, &w.shape, &strides_, &pads_, &dilations_}) key.insert(key.end(), part->begin(), part->end());
  static Cache<Graph> known;
  const auto graph = known.get(key, [&] {
    return std::make_shared<Graph>([&](fe::graph::Graph& made) {
      const auto point = [](fe::PointwiseMode_t mode) { return fe::graph::Pointwise_attributes().set_mode(mode); };
      const Dims like{found[0], found[3], found[1], found[2]};
      auto value = made.conv_fprop(tensor(made, kX, {x.shape[0], x.shape[3], x.shape[1], x.shape[2]}),
                                   tensor(made, kW, {w.shape[0], w.shape[3], w.shape[1], w.shape[2]}),
                                   fe::graph::Conv_fprop_attributes()
                                       .set_pre_padding({pads_[0], pads_[1]})
                                       .set_post_padding({pads_[2], pads_[3]})
                                       .set_stride(strides_)
                                       .set_dilation(dilations_));
      value = made.pointwise(value, tensor(made, kB, {1, w.shape[0], 1, 1}), point(fe::PointwiseMode_t::ADD));
      if (epilogue_.residual) value = made.pointwise(value, tensor(made, kR, like), point(fe::PointwiseMode_t::ADD));
      if (epilogue_.activation == Activation::kRelu) value = made.pointwise(value, point(fe::PointwiseMode_t::RELU_FWD));
      value->set_output(true).set_uid(kY).set_data_type(fe::DataType_t::HALF).set_dim(like).set_stride(strides(like));
    });
  });
  Graph::Pointers pointers{{kX, x.data}, {kW, w.data}, {kB, b.data}, {kY, y.data}};
  if (epilogue_.residual) pointers[kR] = r.data;
  const auto stream = static_cast<cudaStream_t>(run.stream());
  graph->run(pointers, workspace.of(stream), stream);
}

}  // namespace halfconv
