"""Talking to other instances: who is there, the stream of copies and load, and provide, load, unload.

Here lives what is said (`protocol`) and how it travels: `members` by the store, `picture` to those that follow, `link` to each
other instance, `conversation` what is asked of it while requests wait, `connected` all of it. What to say, and what to do about
what is heard, is the mesh's. Imported by the mesh (`protocol` only), `management` (the service), the instance and the tests.
"""
