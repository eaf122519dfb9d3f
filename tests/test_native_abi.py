"""The hand-written declarations of onnxruntime's interface against its real header, where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DECLARATIONS = Path(__file__).parent.parent / "custom_ops" / "onnxruntime_abi.h"
HEADER_DIRECTORIES = [
    os.environ.get("ONNXRUNTIME_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
]
# On Debian 13: apt install libonnxruntime-dev.


def header_directory() -> str | None:
    return next((d for d in HEADER_DIRECTORIES if d and (Path(d) / "onnxruntime_c_api.h").is_file()), None)


def declared_slots() -> dict[str, int]:
    found = re.findall(r"Entry<\s*(\d+), .*> k(\w+);", DECLARATIONS.read_text())
    return {name: int(slot) for slot, name in found}


def test_every_entry_is_declared_once_in_order() -> None:
    slots = declared_slots()
    assert len(slots) >= 20
    assert list(slots.values()) == sorted(set(slots.values()))


@pytest.mark.skipif(
    header_directory() is None or shutil.which("g++") is None, reason="needs g++ and onnxruntime_c_api.h"
)
def test_slots_and_fields_are_those_of_the_real_header(tmp_path: Path) -> None:
    fields = re.search(r"struct CustomOp \{(.*?)\n\};", DECLARATIONS.read_text(), re.DOTALL)
    assert fields is not None
    names = re.findall(r"ORT_CALL\* (\w+)\)", fields[1])
    assert len(names) == 25
    lines = [
        "#include <cstddef>",
        '#include "onnxruntime_c_api.h"',
        f'#include "{DECLARATIONS}"',
        *(
            f'static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*), "{name}");'
            for name, slot in declared_slots().items()
        ),
        *(
            f'static_assert(offsetof(OrtCustomOp, {name}) == offsetof(onnx_attnq::ort::CustomOp, {name}), "{name}");'
            for name in names
        ),
        "static_assert(sizeof(OrtCustomOp) >= sizeof(onnx_attnq::ort::CustomOp));",
    ]
    source = tmp_path / "abi.cpp"
    source.write_text("\n".join(lines))
    command = ["g++", "-std=c++17", "-fsyntax-only", "-I", str(header_directory()), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
