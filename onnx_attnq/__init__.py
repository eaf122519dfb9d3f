"""Prune and log-quantize the attention probabilities of ONNX transformers."""
