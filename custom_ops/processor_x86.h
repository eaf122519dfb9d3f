// Which of the kernels' instruction sets this x86 processor runs, and its system lets it use.
#pragma once

namespace onnx_attnq {

bool runs_avx2();    // AVX2 and FMA
bool runs_avx512();  // F, BW, DQ, VL and VNNI
bool runs_amx();     // tiles of bfloat16. Linux lets a process use them once it has asked; elsewhere this is not tried

// Whether with 512 bits twice as many 16-bit integers are multiplied in a cycle as float32 numbers: true of AMD, not of
// Intel's servers, which have two units for float32 and one for integers.
bool multiplies_int16_faster();

}  // namespace onnx_attnq
