// A node of each op but GroupQueryAttention: its attributes when it is made, its inputs and outputs at each call.
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "onnxruntime_glue.h"

namespace onnx_attnq {
namespace {

// The attributes threshold, step, offset and levels may have a table per head each; together they broadcast.
void read_tables(Kernel& kernel, const KernelInfo* info) {
  const Form& form = kernel.form;
  std::vector<FloatTensor> parts = {tensor_attribute(kernel.api, info, "threshold")};
  if (quantizes(form)) {
    for (const char* name : {"step", "offset", "levels"}) parts.push_back(tensor_attribute(kernel.api, info, name));
  }
  Shape shape;
  for (const FloatTensor& part : parts) shape = broadcast(shape, part.shape, "the scheme's attributes");
  while (shape.size() < kBatchAxes + 2) shape.insert(shape.begin(), 1);
  if (shape.size() > kBatchAxes + 2 || shape[kBatchAxes] != 1 || shape[kBatchAxes + 1] != 1) {
    throw std::invalid_argument("the scheme's attributes must have shape [1], or [H, 1, 1] for a table per head");
  }
  kernel.table_shape = shape;
  for (Index i = 0; i < element_count(shape); ++i) {
    float numbers[4] = {};
    for (std::size_t part = 0; part < parts.size(); ++part) {
      numbers[part] = parts[part].values[static_cast<std::size_t>(broadcast_index(shape, parts[part].shape, i))];
    }
    const bool whole = numbers[3] == std::floor(numbers[3]);
    if (quantizes(form) && !(numbers[1] > 0 && numbers[3] >= 1 && numbers[3] < Table::kSize && whole)) {
      throw std::invalid_argument("step must be positive and levels a whole number from 1 to 255");
    }
    // So that x = 0, as which also the kernels' padding counts, is pruned.
    if (form.spacing == Spacing::kLinear && !(numbers[2] < 0)) throw std::invalid_argument("offset must be negative");
    kernel.tables.push_back(make_table(form, numbers[0], numbers[1], numbers[2], numbers[3]));
  }
}

struct Input {
  const float* data;
  Shape shape;
};

Input input_of(const Kernel& kernel, KernelContext* context, std::size_t index) {
  const Value* value = nullptr;
  check(kKernelContext_GetInput(kernel.api, context, index, &value));
  return {data_of<const float>(kernel.api, value), type_of(kernel.api, value).shape};
}

void* output_of(const Kernel& kernel, KernelContext* context, const Shape& shape) {
  return data_of<void>(kernel.api, output_value(kernel, context, 0, shape));
}

void compute_rows(const Kernel& kernel, KernelContext* context) {
  const Input input = input_of(kernel, context, 0);
  auto* output = static_cast<float*>(output_of(kernel, context, input.shape));
  Rows rows = rows_of(input.shape);
  rows.form = kernel.form;
  rows.tables = tables_of(kernel.tables.data(), kernel.table_shape, rows.batch);
  rows.input = input.data;
  rows.output = output;
  rows.are_scores = kernel.op->kind == Kind::kSoftmax;
  SessionHost host(kernel.api, context);
  if (!quantize(rows, *kernel.kernels.best, host)) throw std::bad_alloc();
}

void compute_attention(const Kernel& kernel, KernelContext* context) {
  std::array<Input, 4> inputs;
  for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i] = input_of(kernel, context, i);
  AttentionShape shape = attention_shape(
      permuted(inputs[0].shape, kernel.query_perm, "query"), permuted(inputs[1].shape, kernel.key_perm, "key"),
      permuted(inputs[2].shape, kernel.value_perm, "value"), whole(inputs[3].shape), kernel.context_perm);
  Attention& attention = shape.attention;
  attention.form = kernel.form;
  attention.tables = tables_of(kernel.tables.data(), kernel.table_shape, attention.batch);
  attention.query = inputs[0].data;
  attention.key = {inputs[1].data, Storage::kFloat};
  attention.value = {inputs[2].data, Storage::kFloat};
  // A scalar 0 stands for no mask.
  const bool masked = element_count(inputs[3].shape) != 1 || inputs[3].data[0] != 0;
  attention.mask = masked ? inputs[3].data : nullptr;
  attention.context = static_cast<float*>(output_of(kernel, context, shape.output));
  attention.scale = kernel.scale;
  attention.softcap = kernel.softcap;
  attention.row_max_floor = kernel.row_max_floor;
  attention.int16_products = kernel.int16_products;
  attention.rough_scores = kernel.kernels.rough_scores;
  join_groups(attention);
  SessionHost host(kernel.api, context);
  if (!attend(attention, kernel.kernels.of(attention), host)) throw std::bad_alloc();
}

// The name of the kernels that run, as UTF-8 bytes: how a program asks which instruction set is active.
void compute_kernel_name(const Kernel& kernel, KernelContext* context) {
  const std::size_t size = std::strlen(kernel.kernels.best->name);
  std::memcpy(output_of(kernel, context, {static_cast<Index>(size)}), kernel.kernels.best->name, size);
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const Api* api, const Op* op, const KernelInfo* info) {
  auto kernel = std::make_unique<Kernel>();
  kernel->api = api;
  kernel->op = op;
  kernel->kernels = select_kernels();
  if (op->kind == Kind::kKernelName) return kernel;
  kernel->form = op->kind == Kind::kGroupQuery ? group_query_form(api, info) : op->form;
  read_tables(*kernel, info);
  if (op->kind == Kind::kGroupQuery) read_group_query(*kernel, info);
  if (op->kind != Kind::kAttention) return kernel;
  kernel->row_max_floor = number_attribute(api, info, "row_max_floor");
  kernel->scale = number_attribute(api, info, "scale");
  if (op->capped) kernel->softcap = number_attribute(api, info, "softcap");
  if (op->capped && !(kernel->softcap > 0)) throw std::invalid_argument("attribute softcap must be positive");
  std::int64_t qk = 0;
  check(kKernelInfoGetAttribute_int64(api, info, "qk", &qk));
  if (qk != 0 && qk != 1) throw std::invalid_argument("attribute qk must be 0 (float32) or 1 (int16)");
  kernel->int16_products = qk == 1;
  kernel->query_perm = permutation_attribute(api, info, "q_perm");
  kernel->key_perm = permutation_attribute(api, info, "k_perm");
  kernel->value_perm = permutation_attribute(api, info, "v_perm");
  kernel->context_perm = permutation_attribute(api, info, "out_perm");
  return kernel;
}

Status* ORT_CALL compute(void* state, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, [&] {
    switch (kernel.op->kind) {
      case Kind::kSoftmax:
      case Kind::kProbabilities:
        return compute_rows(kernel, context);
      case Kind::kAttention:
        return compute_attention(kernel, context);
      case Kind::kGroupQuery:
        return compute_group_query(kernel, context);
      case Kind::kKernelName:
        return compute_kernel_name(kernel, context);
    }
  });
}

}  // namespace onnx_attnq
