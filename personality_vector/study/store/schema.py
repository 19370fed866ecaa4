"""The tables of a store, format 2."""

FORMAT = "2"

_CELL = "base, intervention, strength, measure, seed"

TABLES: dict[str, str] = {
    # What the folder holds: its format, the latest recipe, and what else a report needs.
    "run": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    # One measure of one intervention at one strength with one seed, finished.
    "cells": (
        "id INTEGER PRIMARY KEY, base TEXT NOT NULL, intervention TEXT NOT NULL, "
        "strength REAL NOT NULL, measure TEXT NOT NULL, seed INTEGER NOT NULL, "
        f"seconds REAL NOT NULL, finished_at TEXT NOT NULL, UNIQUE ({_CELL})"
    ),
    # Who works on what, and until when this holds.
    "claims": (
        "key TEXT PRIMARY KEY, worker TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, "
        "expires REAL NOT NULL"
    ),
    "answers": (
        "id INTEGER PRIMARY KEY, cell INTEGER NOT NULL REFERENCES cells, item TEXT NOT NULL, "
        "sample INTEGER NOT NULL, question TEXT NOT NULL, reply TEXT NOT NULL, "
        "traits TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, "
        "seconds REAL NOT NULL, UNIQUE (cell, item, sample)"
    ),
    # ``judge`` is a digest of the judge and of the rubric, so that neither can change unseen.
    "scores": (
        "answer INTEGER NOT NULL REFERENCES answers, judge TEXT NOT NULL, trait TEXT NOT NULL, "
        "value REAL, reason TEXT NOT NULL, PRIMARY KEY (answer, judge)"
    ),
    "readings": (
        "cell INTEGER NOT NULL REFERENCES cells, measure TEXT NOT NULL, trait TEXT NOT NULL, "
        "value REAL, low REAL, high REAL, n INTEGER NOT NULL, unscored INTEGER NOT NULL, "
        "unit TEXT NOT NULL, PRIMARY KEY (cell, measure, trait)"
    ),
    # The cells of the latest recipe, under the names that it gives them.
    "planned": (
        "position INTEGER PRIMARY KEY, label TEXT NOT NULL, name TEXT NOT NULL, "
        "base TEXT NOT NULL, intervention TEXT NOT NULL, strength REAL NOT NULL, "
        "measure TEXT NOT NULL, seed INTEGER NOT NULL, nominal REAL NOT NULL, "
        "UNIQUE (label, nominal, seed, name)"
    ),
    # Who rates the answers of which measure of the latest recipe, and for what.
    "judged": (
        "name TEXT NOT NULL, called TEXT NOT NULL, trait TEXT NOT NULL, judge TEXT NOT NULL, "
        "PRIMARY KEY (name, called, trait)"
    ),
}
"""Table to its columns."""

PLAN = ("planned", "judged")
"""The tables that say what the latest recipe asks for; all others only grow."""
