"""Judges: answers in, scores out; one file each."""
