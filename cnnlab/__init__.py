"""cnnlab: from images to a convolutional network, with PyTorch Lightning.

The package itself imports nothing heavy: take what you need from cnnlab.tasks, cnnlab.data, cnnlab.models
and cnnlab.callbacks.
"""

__version__ = "0.1.0"
