// How a call is cut into tasks. The cut depends on shapes only, never on the number of threads, so results do not
// either.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace onnx_attnq {
namespace {

constexpr std::size_t kAlignment = 64;

// Pieces of memory of one size, for one call: as many as are in use at the same time. Each begins with its links to
// others, so that taking one on a thread of the host allocates nothing else, and nothing throws there.
class Pool {
 public:
  Pool(Host& host, std::size_t floats)
      : host_(host), bytes_(sizeof(Links) + sizeof(Links*) + floats * sizeof(float) + kAlignment) {}
  ~Pool() {
    while (all_ != nullptr) {
      Links* const next = all_->next_of_all;
      host_.release(all_);
      all_ = next;
    }
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Null when there is no memory left.
  float* take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_ == nullptr) {
      void* const memory = host_.allocate(bytes_);
      if (memory == nullptr) return nullptr;
      free_ = all_ = new (memory) Links{all_, nullptr};
    }
    Links* const piece = free_;
    free_ = piece->next_free;
    return numbers_of(piece);
  }
  void give_back(float* numbers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Links* const piece = links_before(numbers);
    piece->next_free = free_;
    free_ = piece;
  }

 private:
  struct Links {
    Links *next_of_all, *next_free;
  };

  // The numbers start on a line of the cache; right before them is the address where their piece begins.
  static float* numbers_of(Links* piece) {
    const auto after = reinterpret_cast<std::uintptr_t>(piece + 1) + sizeof(Links*);
    auto* const numbers = reinterpret_cast<float*>((after + kAlignment - 1) / kAlignment * kAlignment);
    std::memcpy(reinterpret_cast<char*>(numbers) - sizeof piece, &piece, sizeof piece);
    return numbers;
  }
  static Links* links_before(const float* numbers) {
    Links* piece;
    std::memcpy(&piece, reinterpret_cast<const char*>(numbers) - sizeof piece, sizeof piece);
    return piece;
  }

  Host& host_;
  const std::size_t bytes_;
  std::mutex mutex_;
  Links *all_ = nullptr, *free_ = nullptr;
};

template <class Function>
void parallel_for(Host& host, Index count, Function function) {
  host.parallel_for(
      count, [](void* user, std::size_t i) { (*static_cast<Function*>(user))(static_cast<Index>(i)); }, &function);
}

// Calls function(i, scratch) for every i below count. False when memory ran out, of which the function says so too.
template <class Function>
bool parallel_with_scratch(Host& host, Index count, std::size_t floats, Function function) {
  Pool scratch(host, floats);
  std::atomic<bool> enough{true};
  parallel_for(host, count, [&](Index i) {
    float* const piece = scratch.take();
    if (piece == nullptr || !function(i, piece)) enough = false;
    if (piece != nullptr) scratch.give_back(piece);
  });
  return enough;
}

// Packed copies of the keys, or of the values, of all matrices; matrices that share theirs share one copy. A copy is
// made when the first block that reads it starts, by all that wait for it, and its memory serves another when the last
// has ended. So it is read while it is in the cache, and there are only as many copies as there are threads, unless
// matrices that share one are far apart.
class Packed {
 public:
  using Pack = void (*)(const Attention&, Numbers matrix, Index piece, float* packed);

  // `floats` is the size of a copy, 0 where there is nothing to pack; `blocks` says how many read each matrix.
  Packed(Host& host, const Attention& attention, Numbers source, const Strides& strides, std::size_t floats,
         Index pieces, Index blocks, Pack pack)
      : attention_(attention),
        source_(source),
        strides_(strides),
        pieces_(pieces),
        pack_(pack),
        used_(floats != 0),
        memory_(host, floats) {
    Index count = 1, sharing = 1;
    for (int axis = kBatchAxes; axis-- > 0;) {
      const bool shared = strides.batch[axis] == 0;
      batch_[axis] = shared ? 1 : attention.batch[axis];
      stride_[axis] = shared ? 0 : count;
      count *= batch_[axis];
      sharing *= shared ? attention.batch[axis] : 1;
    }
    if (used_) copies_.resize(static_cast<std::size_t>(count), Copy{nullptr, 0, 0, sharing * blocks});
  }

  // Null where the original is read.
  struct Result {
    bool enough_memory;
    const float* packed;
  };
  Result open(Index batch) {
    if (!used_) return {true, nullptr};
    std::unique_lock<std::mutex> lock(mutex_);
    const Index index = batch_offset(attention_.batch, stride_, batch);
    Copy& copy = copies_[static_cast<std::size_t>(index)];
    if (copy.memory == nullptr) copy.memory = memory_.take();
    if (copy.memory == nullptr) return {false, nullptr};
    while (copy.begun < pieces_) {
      const Index piece = copy.begun++;
      lock.unlock();
      pack_(attention_, source_ + batch_offset(batch_, strides_.batch, index), piece, copy.memory);
      lock.lock();
      ++copy.done;
    }
    if (copy.done == pieces_) complete_.notify_all();
    complete_.wait(lock, [&] { return copy.done == pieces_; });
    return {true, copy.memory};
  }
  void close(Index batch) {
    if (!used_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    Copy& copy = copies_[static_cast<std::size_t>(batch_offset(attention_.batch, stride_, batch))];
    if (--copy.readers == 0) memory_.give_back(copy.memory);
  }

 private:
  struct Copy {
    float* memory;
    Index begun, done;  // pieces
    Index readers;      // that have not ended
  };

  const Attention& attention_;
  const Numbers source_;
  const Strides& strides_;
  const Index pieces_;
  const Pack pack_;
  const bool used_;
  Index batch_[kBatchAxes], stride_[kBatchAxes];
  Pool memory_;
  std::mutex mutex_;
  std::condition_variable complete_;
  std::vector<Copy> copies_;
};

}  // namespace

// Few rows and many keys: each task has a part of the keys of a matrix. All that a part gives depends on the maxima of
// whole rows, so there are two rounds.
static bool attend_in_parts(const Attention& a, const Kernels& kernels, Host& host, Index parts) {
  const Index rows = a.groups * a.queries, batches = a.batch[0] * a.batch[1] * a.batch[2];
  const auto scratch_size = static_cast<Index>(kernels.part_scratch(a));
  const Index result_size = kernels.part_results(a) * rows;
  const Scratch memory(host, batches * parts * (scratch_size + result_size + rows));
  if (!memory.enough()) return false;
  float* const results = memory.data() + batches * parts * scratch_size;
  float* const peaks = results + batches * parts * result_size;
  parallel_for(host, batches * parts, [&](Index i) {
    kernels.score_part(a, i / parts, i % parts, memory.data() + i * scratch_size, peaks + i * rows);
  });
  for (Index i = 0; i < batches * rows; ++i) {
    float* const first = peaks + i / rows * parts * rows + i % rows;
    for (Index part = 1; part < parts; ++part) *first = std::max(*first, first[part * rows]);
  }
  parallel_for(host, batches * parts, [&](Index i) {
    const float* const of_rows = peaks + i / parts * parts * rows;
    kernels.finish_part(a, i / parts, i % parts, memory.data() + i * scratch_size, of_rows, results + i * result_size);
  });
  for (Index i = 0; i < batches * rows; ++i) {
    float* const of_row = results + i / rows * parts * result_size + i % rows * kernels.part_results(a);
    kernels.end_parts(a, i / rows, i % rows, of_row, result_size);
  }
  return true;
}

bool attend(const Attention& attention, const Kernels& kernels, Host& host) {
  const Index rows = attention.groups * attention.queries;
  const Index batches = attention.batch[0] * attention.batch[1] * attention.batch[2];
  if (batches == 0 || rows == 0 || attention.value_depth == 0) return true;
  const Index parts = kernels.parts == nullptr ? 1 : kernels.parts(attention);
  if (parts > 1) return attend_in_parts(attention, kernels, host, parts);
  const Index block = kernels.rows_per_block(attention);
  const Index blocks = (rows + block - 1) / block;

  const bool packs = kernels.pack_keys != nullptr;
  const Index pieces = packs ? kernels.pieces(attention) : 0;
  Packed keys(host, attention, attention.key, attention.key_strides, packs ? kernels.packed_keys(attention) : 0, pieces,
              blocks, kernels.pack_keys);
  Packed values(host, attention, attention.value, attention.value_strides, packs ? kernels.packed_values(attention) : 0,
                pieces, blocks, kernels.pack_values);
  return parallel_with_scratch(host, batches * blocks, kernels.attend_scratch(attention), [&](Index i, float* scratch) {
    const Index batch = i / blocks;
    const Index first = i % blocks * block;
    const auto k = keys.open(batch), v = values.open(batch);
    if (!k.enough_memory || !v.enough_memory) return false;
    kernels.attend(attention, batch, first, std::min(first + block, rows), k.packed, v.packed, scratch);
    values.close(batch);
    keys.close(batch);
    return true;
  });
}

bool quantize(const Rows& rows, const Kernels& kernels, Host& host) {
  if (rows.rows == 0 || rows.length == 0) return true;
  // About 64 KB of input to a task.
  const Index block = std::max<Index>(1, 16384 / rows.length);
  const Index blocks = (rows.rows + block - 1) / block;
  return parallel_with_scratch(host, blocks, kernels.quantize_scratch(rows), [&](Index i, float* scratch) {
    kernels.quantize(rows, i * block, std::min((i + 1) * block, rows.rows), scratch);
    return true;
  });
}

}  // namespace onnx_attnq
