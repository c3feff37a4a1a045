"""Own CPU kernels, one family a file: ``conv``, ``depthwise``, ``depthwise_dot``, ``matmul``, ``batch_matmul`` ...

Each family is a module with the functions of :class:`shave.backends.tvm.kernels.base.KernelFamily`; ``base`` also
states the layouts that they read and write.
"""
