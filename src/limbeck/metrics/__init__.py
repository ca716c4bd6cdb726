"""Tensors or arrays in, numbers out; only ``accuracy`` needs torch, the rest numpy alone."""
