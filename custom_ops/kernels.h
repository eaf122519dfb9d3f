// The kernels of every instruction set; kernel_<name>.cpp defines each.
#pragma once

#include "attention.h"

namespace onnx_attnq {

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAmxKernels;
extern const Kernels kNeonKernels;

}  // namespace onnx_attnq
