"""The meaning of every op in plain PyTorch: any device, any float dtype, differentiable.

These are written to be obviously right, not to be fast. The kernels are compared with them, and
they take the kernels' place where there are none.
"""
