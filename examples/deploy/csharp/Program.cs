// Run a compressed encoder: dotnet run -- MODEL LIBRARY BATCH TOKENS ID...
// LIBRARY is the native library (libonnx_attnq.so, libonnx_attnq.dll), whose kernels then run; or -, and the ops are
// computed by the functions that the model carries. Prints the numbers of the first output.
using System.Globalization;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

if (args.Length < 5)
{
    Console.Error.WriteLine("usage: encoder MODEL LIBRARY|- BATCH TOKENS ID...");
    return 2;
}
var shape = new[] { int.Parse(args[2]), int.Parse(args[3]) };
var ids = args.Skip(4).Select(long.Parse).ToArray();

using var options = new SessionOptions();
if (args[1] != "-")
{
    // onnxruntime unloads the library when the last session that uses it is gone.
    options.RegisterCustomOpLibrary(Path.GetFullPath(args[1]));
}
using var session = new InferenceSession(args[0], options);

var values = new Dictionary<string, long[]>
{
    ["input_ids"] = ids,
    ["attention_mask"] = Enumerable.Repeat(1L, ids.Length).ToArray(),
    ["token_type_ids"] = new long[ids.Length],
};
var inputs = session.InputMetadata.Keys
    .Select(name => NamedOnnxValue.CreateFromTensor(name, new DenseTensor<long>(values[name], shape)))
    .ToList();
using var outputs = session.Run(inputs);
var numbers = outputs.First(output => output.Name == session.OutputNames[0]).AsEnumerable<float>();
Console.WriteLine(string.Join(" ", numbers.Select(number => number.ToString("G9", CultureInfo.InvariantCulture))));
return 0;
