"""Measuring a model: what it says, how likely it finds what others say, and what else changed.

``administer`` asks the items of an instrument, a judge turns responses into scores, ``probe`` needs
no generation and no judge, ``retention`` measures side effects. Self-report, interviews and
likelihoods can disagree, so they stay separate measures.
"""
