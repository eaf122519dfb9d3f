// Which instruction set's kernels run.
#pragma once

#include <string>

#include "attention.h"

namespace onnx_attnq {

// The best kernels that this processor runs, and the next best for calls where those do not pay.
struct Selection {
  const Kernels* best;
  const Kernels* next;
  RoughScores rough_scores;
  const Kernels& of(const Attention& attention) const { return best->pays(attention) ? *best : *next; }
};

// The environment variable ONNX_ATTNQ_ISA names kernels that are to run whether they pay or not; with
// ONNX_ATTNQ_ROUGH_SCORES=0 no call computes scores roughly first, with 1 all do that can. Throws std::invalid_argument
// for other values, and for kernels that this processor cannot run.
Selection select_kernels();

}  // namespace onnx_attnq
