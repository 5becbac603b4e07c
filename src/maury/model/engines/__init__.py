"""Engines that compute an ensemble: PyTorch, and code compiled for the processor.

`engine` chooses one, and stacks the members of an ensemble in PyTorch. For the published networks
`lowering` turns layers into `kernels`, and `llvm` compiles them.
"""
