"""Engines that compute an ensemble: PyTorch, and code compiled for the processor.

`engine` chooses one; `lowering` turns a network into `kernels`, `llvm` compiles them.
"""
