// What the kernels compute, independent of onnxruntime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers.h"
#include "scheme.h"

namespace onnx_attnq {

inline constexpr int kBatchAxes = 3;  // tensors have rank 2 to 5

// The scheme's tables for the batch axes: stride 0 where one table serves the whole axis.
struct Tables {
  const Table* first;
  Index stride[kBatchAxes];
};

// A tensor seen as a batch of matrices, in units of numbers; a broadcast axis has stride 0.
struct Strides {
  Index batch[kBatchAxes];
  Index row;
  Index column;
};

// Which calls compute their scores roughly first (screening.h), of those that can.
enum class RoughScores { kNever, kWhereFaster, kAlways };

// Which keys a query sees, beside what a mask says: query i is at key `first` + i and sees those up to there, the
// last `window` of them if that is not 0.
struct Bounds {
  bool causal;  // or every query sees all
  Index first, window;

  Index begin(Index query) const {
    return causal && window != 0 && first + query >= window ? first + query - window + 1 : 0;
  }
  Index end(Index query, Index keys) const { return causal && first + query < keys ? first + query + 1 : keys; }
};

// context = quantized(softcap(query * scale x key) + mask) x value, for every matrix of the batch.
struct Attention {
  Form form;
  Tables tables;

  const float* query;  // (queries, depth)
  Numbers key;         // (depth, keys); of others than floats, the numbers of a key lie one after the other
  Numbers value;       // (keys, value_depth); so do those of a value
  const float* mask;   // (queries, keys), or null
  float* context;      // (queries, value_depth)
  Strides query_strides, key_strides, value_strides, mask_strides, context_strides;

  Index batch[kBatchAxes];
  Index queries, keys, depth, value_depth;

  // The last batch axis, where keys and values are the same along it (grouped queries): its matrices count as more
  // rows of one matrix, so that a group reads its keys once. `batch` then has 1 in its place.
  Index groups;
  Index query_group, mask_group, context_group, table_group, sink_group;

  Bounds bounds;
  float softcap;  // scores are kept between it and its negative, by tanh; 0 for as they are
  // The score of one key more in every row, which has no value: a number for each head. Or null.
  const float* sinks;
  Index sink_batch[kBatchAxes];
  Index row_length;   // keys as the scheme counts them for its sample: with those that no row sees, and the sink
  Index first_index;  // what the first key counts as there; a multiple of 16

  float scale;
  float row_max_floor;
  bool int16_products;  // query x key in 16-bit integers
  RoughScores rough_scores;
};

// Probabilities from rows that lie one after the other.
struct Rows {
  Form form;
  Tables tables;
  Index batch[kBatchAxes];  // the last axes before the rows; those before them share tables
  Index rows_per_matrix;

  const float* input;
  float* output;
  Index rows, length;
  bool are_scores;  // or probabilities
};

// The sample of keys that share what pruned ones summed to: those, of the unmasked, whose index is a multiple of this.
static inline Index sample_stride(Index keys) {
  Index stride = 1;
  while (256 * stride <= keys) stride *= 2;
  return stride;
}

// Where in a tensor the matrix of a batch index lies.
static inline Index batch_offset(const Index (&batch)[kBatchAxes], const Index (&strides)[kBatchAxes], Index index) {
  Index offset = 0;
  for (int axis = kBatchAxes; axis-- > 0;) {
    offset += index % batch[axis] * strides[axis];
    index /= batch[axis];
  }
  return offset;
}

// What the kernels need of the program that calls them.
class Host {
 public:
  virtual ~Host() = default;
  // Calls task(user, i) for every i below count, on any threads.
  virtual void parallel_for(Index count, void (*task)(void* user, std::size_t i), void* user) = 0;
  // Null when there is none left. Called from any thread.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) = 0;
};

// Memory of the host's for the length of a call.
class Scratch {
 public:
  Scratch(Host& host, Index floats)
      : host_(host),
        memory_(floats == 0 ? nullptr : host.allocate(static_cast<std::size_t>(floats) * sizeof(float))),
        enough_(floats == 0 || memory_ != nullptr) {}
  ~Scratch() {
    if (memory_ != nullptr) host_.release(memory_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return static_cast<float*>(memory_); }
  bool enough() const { return enough_; }

 private:
  Host& host_;
  void* const memory_;
  const bool enough_;
};

// One instruction set's kernels. All sizes are in floats.
struct Kernels {
  const char* name;
  bool (*supported)();             // by this processor
  bool (*pays)(const Attention&);  // or whether the next best are faster

  // How many rows of a matrix make one task.
  Index (*rows_per_block)(const Attention&);

  // Keys and values that several blocks read are brought into the order of the inner loops once, piece by piece. A size
  // of 0 says that attend reads the original.
  std::size_t (*packed_keys)(const Attention&);
  std::size_t (*packed_values)(const Attention&);
  Index (*pieces)(const Attention&);
  void (*pack_keys)(const Attention&, Numbers key, Index piece, float* packed);
  void (*pack_values)(const Attention&, Numbers value, Index piece, float* packed);

  // Rows first to last - 1 of the matrix `batch`; packed keys and values are that matrix's, or null.
  std::size_t (*attend_scratch)(const Attention&);
  void (*attend)(const Attention&, Index batch, Index first, Index last, const float* packed_keys,
                 const float* packed_values, float* scratch);

  // Few rows whose keys are shared out among tasks: how many parts these are in, 1 where rows are not taken like that.
  // score_part notes the largest score of each row in its part, finish_part what the part gives of each row: as many
  // numbers as part_results. The scratch memory of a part is kept from one to the other. end_parts makes the context
  // of a row of what all parts gave.
  Index (*parts)(const Attention&);
  std::size_t (*part_scratch)(const Attention&);
  Index (*part_results)(const Attention&);
  void (*score_part)(const Attention&, Index batch, Index part, float* scratch, float* peaks);
  void (*finish_part)(const Attention&, Index batch, Index part, float* scratch, const float* peaks, float* results);
  void (*end_parts)(const Attention&, Index batch, Index row, float* results, Index part_stride);

  std::size_t (*quantize_scratch)(const Rows&);
  void (*quantize)(const Rows&, Index first, Index last, float* scratch);
};

// Run a whole call on the host's threads; false when memory ran out.
bool attend(const Attention& attention, const Kernels& kernels, Host& host);
bool quantize(const Rows& rows, const Kernels& kernels, Host& host);

}  // namespace onnx_attnq
