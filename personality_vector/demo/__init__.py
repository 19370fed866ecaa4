"""The embedded default: a small chat model of this project, and the whole job on it."""
