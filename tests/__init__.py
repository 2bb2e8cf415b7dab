"""Tests of cnnlab."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes of the tests share the cores: more threads than cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
