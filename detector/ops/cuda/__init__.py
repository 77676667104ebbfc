"""CUDA kernels: the ``.cu`` sources, the functions that launch them, and their runtime.

Each module here has the name of the op it computes, beside the ``.cu`` file of the same name.
Nothing is built when the package is installed: :mod:`detector.ops.cuda.runtime` compiles a kernel
for the card at hand when it is first launched.
"""
