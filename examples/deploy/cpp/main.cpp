// Run a compressed encoder: encoder MODEL LIBRARY BATCH TOKENS ID...
// LIBRARY is libonnx_attnq.so, whose kernels then run; or -, and the ops are computed by the functions that the model
// carries. Prints the numbers of the first output.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main(int argc, char** argv) try {
  if (argc < 6) {
    std::cerr << "usage: encoder MODEL LIBRARY|- BATCH TOKENS ID...\n";
    return 2;
  }
  const std::string library = argv[2];
  const std::vector<std::int64_t> shape = {std::atoll(argv[3]), std::atoll(argv[4])};
  const std::vector<std::string> words(argv + 5, argv + argc);
  if (shape[0] * shape[1] != static_cast<std::int64_t>(words.size())) {
    std::cerr << "there must be BATCH x TOKENS ids\n";
    return 2;
  }

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "encoder");
  Ort::SessionOptions options;
  if (library != "-") {
    options.RegisterCustomOpsLibrary(std::basic_string<ORTCHAR_T>(library.begin(), library.end()).c_str());
  }
  const std::string path = argv[1];
  Ort::Session session(env, std::basic_string<ORTCHAR_T>(path.begin(), path.end()).c_str(), options);

  std::vector<std::int64_t> ids, ones(words.size(), 1), zeros(words.size(), 0);
  std::transform(words.begin(), words.end(), std::back_inserter(ids), [](const auto& w) { return std::stoll(w); });

  Ort::AllocatorWithDefaultOptions allocator;
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::string> input_names;
  std::vector<Ort::Value> inputs;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
    input_names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    auto& values = input_names.back() == "input_ids" ? ids : input_names.back() == "attention_mask" ? ones : zeros;
    inputs.push_back(Ort::Value::CreateTensor(memory, values.data(), values.size(), shape.data(), shape.size()));
  }
  std::vector<const char*> names;
  for (const auto& name : input_names) names.push_back(name.c_str());
  const auto output_name = session.GetOutputNameAllocated(0, allocator);
  const char* output_names[] = {output_name.get()};

  const auto outputs = session.Run(Ort::RunOptions{}, names.data(), inputs.data(), inputs.size(), output_names, 1);
  const float* numbers = outputs[0].GetTensorData<float>();
  std::cout.precision(9);
  for (std::size_t i = 0; i < outputs[0].GetTensorTypeAndShapeInfo().GetElementCount(); ++i) {
    std::cout << numbers[i] << ' ';
  }
  std::cout << '\n';
} catch (const std::exception& error) {  // Ort::Exception is one
  std::cerr << error.what() << '\n';
  return 1;
}
