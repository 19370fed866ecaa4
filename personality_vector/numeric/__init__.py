"""Kernels, compiled loops, threads and random numbers."""
