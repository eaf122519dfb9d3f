// Which instruction set's kernels run.
#pragma once

#include <string>

#include "attention.h"

namespace onnx_attnq {

// The best kernels that this processor runs, and the next best for calls where those do not pay.
struct Selection {
  const Kernels* best;
  const Kernels* next;
  const Kernels& of(const Attention& attention) const { return best->pays(attention) ? *best : *next; }
};

// The environment variable ONNX_ATTNQ_ISA names kernels that are to run whether they pay or not.
// Throws std::invalid_argument when it names none, or some that this processor cannot run.
Selection select_kernels();

}  // namespace onnx_attnq
