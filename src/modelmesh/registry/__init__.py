"""What is registered: records and their codec, and the mirror (what this instance knows of models and vmodels).

Pure values: no store, no clock, no I/O. `mesh/` feeds the mirror from the store and writes records back.
"""
