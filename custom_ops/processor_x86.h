// Which of the kernels' instruction sets this x86 processor runs, and its system lets it use.
#pragma once

namespace onnx_attnq {

bool runs_avx2();    // AVX2 and FMA
bool runs_avx512();  // F, BW, DQ, VL and VNNI
bool runs_amx();     // tiles of bfloat16. Linux lets a process use them once it has asked; elsewhere this is not tried

bool is_amd();

}  // namespace onnx_attnq
