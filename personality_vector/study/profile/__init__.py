"""Alphas that give a wanted profile of traits, from the measured cross-talk of vectors."""
