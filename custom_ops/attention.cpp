// How a call is cut into tasks. The cut depends on shapes only, never on the number of threads, so results do not either.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace onnx_attnq {
namespace {

constexpr std::size_t kAlignment = 64;

float* aligned(void* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

// The scratch memory of one call: as many equal pieces as threads ask for at the same time.
class Scratch {
 public:
  Scratch(Host& host, std::size_t floats) : host_(host), bytes_(floats * sizeof(float) + kAlignment) {}
  ~Scratch() {
    for (void* piece : all_) host_.release(piece);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      void* piece = free_.back();
      free_.pop_back();
      return piece;
    }
    void* piece = host_.allocate(bytes_);
    if (piece != nullptr) all_.push_back(piece);
    return piece;
  }
  void give_back(void* piece) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(piece);
  }

 private:
  Host& host_;
  const std::size_t bytes_;
  std::mutex mutex_;
  std::vector<void*> all_, free_;
};

template <class Function>
void parallel_for(Host& host, Index count, Function function) {
  host.parallel_for(
      count, [](void* user, std::size_t i) { (*static_cast<Function*>(user))(static_cast<Index>(i)); }, &function);
}

// Matrices that share their keys share one packed copy: axes along which the keys are broadcast do not count.
struct DistinctKeys {
  Index batch[kBatchAxes];
  Index strides[kBatchAxes];  // of the packed copies
  Index count = 1;

  explicit DistinctKeys(const Attention& attention) {
    for (int axis = kBatchAxes; axis-- > 0;) {
      const bool shared = attention.key_strides.batch[axis] == 0;
      batch[axis] = shared ? 1 : attention.batch[axis];
      strides[axis] = shared ? 0 : count;
      count *= batch[axis];
    }
  }
};

}  // namespace

bool attend(const Attention& attention, const Kernels& kernels, Host& host) {
  const Index rows = attention.rows();
  if (attention.batches() == 0 || rows == 0 || attention.value_depth == 0) return true;
  const Index block = kernels.rows_per_block(attention);
  const Index blocks = (rows + block - 1) / block;

  const DistinctKeys keys(attention);
  const std::size_t packed_floats = blocks > 1 && kernels.pack != nullptr ? kernels.packed_floats(attention) : 0;
  void* packed_memory = nullptr;
  float* packed = nullptr;
  if (packed_floats != 0) {
    packed_memory = host.allocate(packed_floats * static_cast<std::size_t>(keys.count) * sizeof(float) + kAlignment);
    if (packed_memory == nullptr) return false;
    packed = aligned(packed_memory);
    const Index tasks = kernels.pack_tasks(attention);
    parallel_for(host, keys.count * tasks, [&](Index i) {
      const Index copy = i / tasks;
      const float* key = attention.key + batch_offset(keys.batch, attention.key_strides.batch, copy);
      kernels.pack(attention, key, i % tasks, packed + packed_floats * static_cast<std::size_t>(copy));
    });
  }

  std::atomic<bool> enough{true};
  {
    Scratch scratch(host, kernels.scratch_floats(attention));
    parallel_for(host, attention.batches() * blocks, [&](Index i) {
      void* piece = scratch.take();
      if (piece == nullptr) {
        enough = false;
        return;
      }
      const Index batch = i / blocks;
      const Index first = i % blocks * block;
      const float* keys_of_batch =
          packed == nullptr ? nullptr
                            : packed + static_cast<Index>(packed_floats) * batch_offset(attention.batch, keys.strides, batch);
      kernels.attend(attention, batch, first, std::min(first + block, rows), keys_of_batch, aligned(piece));
      scratch.give_back(piece);
    });
  }
  if (packed_memory != nullptr) host.release(packed_memory);
  return enough;
}

void quantize(const Rows& rows, const Kernels& kernels, Host& host) {
  if (rows.rows == 0 || rows.length == 0) return;
  // About 64 KB of input per task.
  const Index block = std::max<Index>(1, 16384 / rows.length);
  const Index blocks = (rows.rows + block - 1) / block;
  parallel_for(host, blocks,
               [&](Index i) { kernels.quantize(rows, i * block, std::min((i + 1) * block, rows.rows)); });
}

}  // namespace onnx_attnq
