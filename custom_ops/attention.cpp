// How a call is cut into tasks. The cut depends on shapes only, never on the number of threads, so results do not
// either.
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

// Packed copies of the keys, or of the values, of all matrices. Matrices that share theirs share one copy.
class Packed {
 public:
  using Pack = void (*)(const Attention&, const float* matrix, Index piece, float* packed);

  Packed(Host& host, const Attention& attention, const Strides& source, std::size_t floats)
      : host_(host), attention_(attention), source_(source), floats_(static_cast<Index>(floats)) {
    for (int axis = kBatchAxes; axis-- > 0;) {
      const bool shared = source.batch[axis] == 0;
      batch_[axis] = shared ? 1 : attention.batch[axis];
      stride_[axis] = shared ? 0 : count_;
      count_ *= batch_[axis];
    }
  }
  ~Packed() {
    if (memory_ != nullptr) host_.release(memory_);
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  bool make(const float* first, Index pieces, Pack pack) {
    if (floats_ == 0) return true;
    memory_ = host_.allocate(static_cast<std::size_t>(floats_ * count_) * sizeof(float) + kAlignment);
    if (memory_ == nullptr) return false;
    parallel_for(host_, count_ * pieces, [&](Index i) {
      const Index copy = i / pieces;
      pack(attention_, first + batch_offset(batch_, source_.batch, copy), i % pieces,
           aligned(memory_) + floats_ * copy);
    });
    return true;
  }

  // The copy that belongs to a matrix of the whole batch.
  const float* of(Index batch) const {
    return memory_ == nullptr ? nullptr : aligned(memory_) + floats_ * batch_offset(attention_.batch, stride_, batch);
  }

 private:
  Host& host_;
  const Attention& attention_;
  const Strides& source_;
  const Index floats_;
  Index batch_[kBatchAxes], stride_[kBatchAxes];
  Index count_ = 1;
  void* memory_ = nullptr;
};

// Calls function(i, scratch) for every i below count; false when memory ran out.
template <class Function>
bool parallel_with_scratch(Host& host, Index count, std::size_t floats, Function function) {
  Scratch scratch(host, floats);
  std::atomic<bool> enough{true};
  parallel_for(host, count, [&](Index i) {
    if (void* piece = scratch.take()) {
      function(i, aligned(piece));
      scratch.give_back(piece);
    } else {
      enough = false;
    }
  });
  return enough;
}

}  // namespace

bool attend(const Attention& attention, const Kernels& kernels, Host& host) {
  const Index rows = attention.groups * attention.queries;
  const Index batches = attention.batch[0] * attention.batch[1] * attention.batch[2];
  if (batches == 0 || rows == 0 || attention.value_depth == 0) return true;
  const Index block = kernels.rows_per_block(attention);
  const Index blocks = (rows + block - 1) / block;

  const bool packs = kernels.pack_keys != nullptr;
  Packed keys(host, attention, attention.key_strides, packs ? kernels.packed_keys(attention) : 0);
  Packed values(host, attention, attention.value_strides, packs ? kernels.packed_values(attention) : 0);
  if (packs) {
    const Index pieces = kernels.pieces(attention);
    if (!keys.make(attention.key, pieces, kernels.pack_keys)) return false;
    if (!values.make(attention.value, pieces, kernels.pack_values)) return false;
  }
  return parallel_with_scratch(host, batches * blocks, kernels.attend_scratch(attention), [&](Index i, float* scratch) {
    const Index batch = i / blocks;
    const Index first = i % blocks * block;
    kernels.attend(attention, batch, first, std::min(first + block, rows), keys.of(batch), values.of(batch), scratch);
  });
}

bool quantize(const Rows& rows, const Kernels& kernels, Host& host) {
  if (rows.rows == 0 || rows.length == 0) return true;
  // About 64 KB of input to a task.
  const Index block = std::max<Index>(1, 16384 / rows.length);
  const Index blocks = (rows.rows + block - 1) / block;
  return parallel_with_scratch(host, blocks, kernels.quantize_scratch(rows), [&](Index i, float* scratch) {
    kernels.quantize(rows, i * block, std::min((i + 1) * block, rows.rows), scratch);
  });
}

}  // namespace onnx_attnq
