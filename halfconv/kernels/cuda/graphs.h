// cuDNN's graphs of operations, with the fastest of the plans that its heuristics propose.
#pragma once

#include <cstring>  // which cuDNN's headers forget

#include <cudnn_frontend.h>

#include "device.h"

namespace halfconv {

namespace fe = cudnn_frontend;

// A graph of cuDNN. The tensors' numbers are their keys in `pointers`.
class Graph {
 public:
  using Pointers = std::unordered_map<int64_t, void*>;
  using Describe = std::function<void(fe::graph::Graph&)>;

  explicit Graph(const Describe& describe);
  // Builds and times plans when it is called for the first time.
  void run(const Pointers& pointers, void* workspace, cudaStream_t stream);

 private:
  void prepare(const Pointers& pointers, void* workspace, cudaStream_t stream);
  void execute(Pointers pointers, void* workspace, cudaStream_t stream, int64_t plan);

  fe::graph::Graph graph_;
  bool ready_ = false;
  int64_t plan_ = 0;
};

}  // namespace halfconv
