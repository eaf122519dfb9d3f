"""Run models in onnxruntime."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnx_attnq.errors import InvalidData, InvalidModel, MissingLibrary, first_line
from onnx_attnq.interruption import running
from onnx_attnq.model import files
from onnx_attnq.run.arrays import fed, from_numpy, from_value, is_extra_type
from onnx_attnq.run.native import native_library
from onnx_attnq.run.settings import RunSettings
from onnx_attnq.run.shared_weights import without_large_weights

Arrays = dict[str, npt.NDArray[Any]]

_HINTS: Final = {
    "is not a registered function/op": "; --custom-ops takes a library that has it (custom_ops in Python)",
    "Could not find an implementation": "; its CPU has no kernel for this type; `compress --no-verify` runs no model",
}
"""What to do about what onnxruntime says."""

_FOLDER = "session.model_external_initializers_file_folder_path"


class Session:
    """A model ready to run on the CPU.

    Args:
        model: A path, or a model in memory; its external data is read from where it was loaded.
        settings: Threads and custom ops.
        native: Register the native library, so that its kernels run in place of the ops' standard bodies.
        frugal: Save memory rather than time, for a few runs: no packed copies of weights, which onnxruntime then maps
            from the file that they are in, and no memory that is kept from one run to the next.

    Raises:
        InvalidModel: onnxruntime does not take the model; the line says what it said.
        MissingLibrary: A library of custom ops was asked for, but is not there or does not load.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ir.Model,
        settings: RunSettings = RunSettings(),
        *,
        native: bool = False,
        frugal: bool = False,
    ) -> None:
        options = _options(settings, native)
        self._settings = settings
        if not isinstance(model, ir.Model):  # not by its path: onnxruntime refuses files that `load` reads
            model = files.load(model)
        if frugal:
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
            if not _has_quantized_weights(model):
                options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 4  # what goes wrong is raised
        bare = without_large_weights(model)
        self._weights = bare.arrays
        if bare.folder is not None:
            options.add_session_config_entry(_FOLDER, str(bare.folder))
        if bare.arrays:
            values = map(onnxruntime.OrtValue.ortvalue_from_numpy, bare.arrays.values())
            options.add_external_initializers(list(bare.arrays), list(values))
        try:
            self._session = onnxruntime.InferenceSession(bare.content, options, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            said = _said(error, settings)
            hint = next((hint for part, hint in _HINTS.items() if part in said), "")
            source = files.source_of(model)
            name = "the model" if source is None else source.name
            raise InvalidModel(f"{name}: onnxruntime does not load it: {said}{hint}") from None
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        # Those with an initializer may be fed, too.
        self._fed = {*self.inputs, *(value.name for value in self._session.get_overridable_initializers())}
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self._extra = {value.name for value in self._session.get_outputs() if is_extra_type(value.type)}

    def run(self, sample: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """One inference.

        Args:
            sample: An array for each input; those that the model does not have are left out.
            outputs: Names of the outputs to return; None for all.

        Raises:
            InvalidData: onnxruntime does not take the sample.
        """
        names = self.outputs if outputs is None else tuple(outputs)
        plain = [name for name in names if name not in self._extra]
        extra = [name for name in names if name in self._extra]
        found: Arrays = {}
        try:
            feeds = {name: fed(array) for name, array in sample.items() if name in self._fed}
            with running(onnxruntime.RunOptions(), self._settings.seconds) as options:
                if plain:
                    arrays = self._session.run(plain, feeds, options)
                    found.update(zip(plain, map(from_numpy, arrays), strict=True))
                if extra:
                    values = {
                        name: onnxruntime.OrtValue.ortvalue_from_numpy(v) if isinstance(v, np.ndarray) else v
                        for name, v in feeds.items()
                    }
                    shown = self._session.run_with_ort_values(extra, values, options)
                    found.update(zip(extra, map(from_value, shown), strict=True))
            return {name: found[name] for name in names}
        except (*_ERRORS, ValueError, RuntimeError) as error:  # RuntimeError: a type that numpy does not have
            raise self._refused(error) from None

    def bound(self, sample: Mapping[str, npt.NDArray[Any]], shared: Mapping[str, str]) -> Callable[[], None]:
        """Prepare runs on one sample in which inputs and outputs are the same memory, as a decoder's caches may be.

        Args:
            sample: An array for each input; those that the model does not have are left out.
            shared: For some inputs the output that is written over them; equal in shape and type.

        Returns:
            What runs it once, and raises InvalidData where onnxruntime does not take the sample.
        """
        binding = self._session.io_binding()
        written = set()
        for name in self._fed & set(sample):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(sample[name]))
            binding.bind_ortvalue_input(name, value)
            if shared.get(name) in self.outputs:
                binding.bind_ortvalue_output(shared[name], value)
                written.add(shared[name])
        for name in self.outputs:
            if name not in written:
                binding.bind_output(name)

        def run() -> None:
            try:
                with running(onnxruntime.RunOptions(), self._settings.seconds) as options:
                    self._session.run_with_iobinding(binding, options)
            except (*_ERRORS, RuntimeError) as error:
                raise self._refused(error) from None

        return run

    def _refused(self, error: Exception) -> InvalidData:
        return InvalidData(f"onnxruntime does not run the model on this sample: {_said(error, self._settings)}")


def _has_quantized_weights(model: ir.Model) -> bool:
    """Whether weights are integers of few bits: unpacked, they are multiplied by kernels that round otherwise."""
    matrices = (tensor for tensor in files.tensors(model) if len(tensor.shape) > 1)
    return any(tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8 for tensor in matrices)


def session(path: str | os.PathLike[str], threads: int | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU, with the native library registered where it was built.

    Args:
        path: A model file, rewritten or not.
        threads: Threads inside an op; None leaves it to onnxruntime.
    """
    options = _options(RunSettings(threads), native_library() is not None)
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def _options(settings: RunSettings, native: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or 0
    libraries = [*settings.custom_ops]
    if native:
        library = native_library()
        if library is None:
            raise MissingLibrary(
                "the native library was not built; `make native` builds it, or install with a C++ compiler"
            )
        libraries.append(library)
    for path in libraries:
        # onnxruntime hands the name to the system, which looks elsewhere for one without a folder.
        absolute = Path(os.path.abspath(path))
        if not absolute.is_file():
            raise MissingLibrary(f"{path}: there is no such library of custom ops")
        try:
            options.register_custom_ops_library(str(absolute))
        except _ERRORS as error:
            raise MissingLibrary(f"{path}: onnxruntime does not load it: {first_line(error)}") from None
    return options


def _said(error: Exception, settings: RunSettings) -> str:
    """What onnxruntime says, without the place in its sources, which is longer than the rest."""
    said = first_line(ValueError(re.sub(r"/\S+\.(h|cc):\d+ .*? was false\. ?", "", str(error), count=1)))
    if re.search("bad_alloc|Failed to allocate memory", str(error)):
        node = re.search(r"while running (\S+) node\. Name:'([^']*)'", said)
        where = "it" if node is None else f"{node[1]} {node[2]!r}" if node[2] else node[1]
        return f"{where} needs more memory than there is; give smaller inputs"
    if settings.seconds is not None and "terminate flag" in str(error):
        return f"it takes longer than {settings.seconds:g} s, the --time-limit (RunSettings.seconds in Python)"
    if "Inconsistent shape in loop output" in said:
        return f"{said}; where iterations of a Loop take different branches, leave out the sites in these (--exclude)"
    return said


_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
