"""`python -m onnx_attnq` is `onnx-attnq`."""

from onnx_attnq.cli import main

if __name__ == "__main__":
    main()
