"""Recipes: strict YAML, and the field types that schemas share. Imports no torch."""
