"""Latency beside the peers and beside the machine's limit: ``python -m benchmarks.latency``.

``models`` are what is timed, ``engines`` what times them, each in a process of its own (``process``); ``measure`` takes
the turns, ``history`` keeps the rows, ``report`` and ``chart`` show them.
"""
