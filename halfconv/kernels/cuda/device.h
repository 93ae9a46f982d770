// What kernels share on a device: errors, a workspace for each stream, and the choice of the fastest of several ways.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace halfconv {

constexpr size_t kWorkspace = size_t{64} << 20;

inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

// Bytes on the device that kernels on one stream use one after another. They live as long as the process: graphs hold them.
void* workspace(cudaStream_t stream);

// The place of the fastest of some ways, which is timed on the stream; ways that throw are out. While a graph is captured, when
// nothing can be timed, it is the first that does not throw.
size_t fastest(cudaStream_t stream, size_t ways, const std::function<void(size_t)>& run);

// What is found out once for each key, by whoever asks first.
template <class Found>
class Cache {
 public:
  using Key = std::vector<int64_t>;

  std::shared_ptr<Found> get(const Key& key, const std::function<std::shared_ptr<Found>()>& make) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto place = known_.find(key);
    if (place == known_.end()) place = known_.emplace(key, make()).first;
    return place->second;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<Found>> known_;
};

inline int device() {
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  return index;
}

}  // namespace halfconv
