"""Talking to other instances: who is there, the stream of copies and load, and provide, load, unload.

Here lives what is said (`protocol`) and how it travels. What to say, and what to do about what is heard, is the mesh's.
Imported by the mesh (`protocol` only), the instance and the tests.
"""
