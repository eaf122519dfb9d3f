// Which instruction set's kernels run.
#pragma once

#include <string>

#include "attention.h"

namespace onnx_attnq {

// The best kernels that this processor runs, or those that the environment variable ONNX_ATTNQ_ISA names.
// Throws std::invalid_argument when it names none, or some that this processor cannot run.
const Kernels& select_kernels();

}  // namespace onnx_attnq
