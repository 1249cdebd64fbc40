"""Decisions as pure functions: values in, a decision and its reason out.

No clock, no I/O, no randomness but a passed-in generator.
"""
