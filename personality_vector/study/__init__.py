"""The study: designs, the store and the worker."""
