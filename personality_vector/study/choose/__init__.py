"""Choosing the layer and the strengths of a steering vector, with the curves that it rests on."""
