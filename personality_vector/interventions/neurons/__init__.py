"""Neurons of the MLPs that tell two poles apart: finding, storing and steering them."""
