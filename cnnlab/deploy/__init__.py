"""Trained networks as files for elsewhere: export, INT8, pruning, what runs them, how fast they are.

Nothing is imported here: ``cnnlab.deploy.runtime`` works without torch.
"""
