"""What pruning costs in accuracy and gives in time, on real models and data.

Run as ``python -m benchmarks.pruning finetune | untrained | curve | speed | show``.
"""
