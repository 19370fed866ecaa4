"""Neurons of the MLPs that tell two poles apart: found, kept on disk, and steered."""
