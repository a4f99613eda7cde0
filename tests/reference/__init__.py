"""Slow PyTorch reference optimizers, one a file, written from their equations."""
