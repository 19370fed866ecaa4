"""The embedded default: a small chat model of this project, and the generator of its corpus."""
