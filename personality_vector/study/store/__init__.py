"""The store: one SQLite file for each run folder, which any number of processes write."""
