"""Deployment of trained networks: export, INT8, pruning, a runtime, and benchmarks.

Nothing is imported here: ``cnnlab.deploy.runtime`` works without torch.
"""
