"""Measurements of finished work, one question per file."""

import os

# other processes and PyTorch need memory of an accelerator, too
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# threads of PyTorch that spin while they wait keep the other contenders from running
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
