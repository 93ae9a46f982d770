#include "graphs.h"

namespace halfconv {
namespace {

// Plans that are built and timed; building one can take a second where cuDNN compiles it.
constexpr int64_t kPlans = 8;

void check_cudnn(cudnnStatus_t code, const char* what) {
  if (code != CUDNN_STATUS_SUCCESS) throw std::runtime_error(std::string(what) + ": " + cudnnGetErrorString(code));
}

void check(fe::error_t error, const char* what) {
  if (error.is_bad()) throw std::runtime_error(std::string(what) + ": " + error.get_message());
}

// A handle is not for several threads at once.
std::mutex& cudnn_mutex() {
  static std::mutex mutex;
  return mutex;
}

cudnnHandle_t cudnn_handle(cudaStream_t stream) {
  static Cache<cudnnHandle_t> known;
  const auto handle = *known.get({device()}, [] {
    auto made = std::make_shared<cudnnHandle_t>();
    check_cudnn(cudnnCreate(made.get()), "cudnnCreate");
    return made;
  });
  check_cudnn(cudnnSetStream(handle, stream), "cudnnSetStream");
  return handle;
}

}  // namespace

Graph::Graph(const Describe& describe) {
  graph_.set_io_data_type(fe::DataType_t::HALF)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  describe(graph_);
}

void Graph::prepare(const Pointers& pointers, void* workspace, cudaStream_t stream) {
  const auto handle = cudnn_handle(stream);
  check(graph_.validate(), "validate");
  check(graph_.build_operation_graph(handle), "build_operation_graph");
  check(graph_.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}), "create_execution_plans");
  std::vector<int64_t> plans;
  for (int64_t plan = 0; plan < graph_.get_execution_plan_count() && static_cast<int64_t>(plans.size()) < kPlans; ++plan)
    if (graph_.build_plan_at_index(handle, plan).is_good() &&
        graph_.get_workspace_size_plan_at_index(plan) <= static_cast<int64_t>(kWorkspace))
      plans.push_back(plan);
  plan_ = plans[fastest(stream, plans.size(), [&](size_t way) { execute(pointers, workspace, stream, plans[way]); })];
  ready_ = true;
}

// The frontend puts places of its own values among the pointers, which are gone after the call: each has a copy.
void Graph::execute(Pointers pointers, void* workspace, cudaStream_t stream, int64_t plan) {
  check(graph_.execute_plan_at_index(cudnn_handle(stream), pointers, workspace, plan), "execute");
}

void Graph::run(const Pointers& pointers, void* workspace, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(cudnn_mutex());
  if (!ready_) prepare(pointers, workspace, stream);
  execute(pointers, workspace, stream, plan_);
}

}  // namespace halfconv
