"""Personality by arithmetic: deltas of language-model weights, merged, swept and compared."""
