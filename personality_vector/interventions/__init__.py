"""Interventions: ways to change what a model says, undone when the ``with`` block ends."""
