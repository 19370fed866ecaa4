"""Merging: ``base + method(alpha_i * delta_i)``, streamed in chunks to a checkpoint."""
