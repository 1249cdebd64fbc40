"""Model formats, one file each, found through the entry point group `modelmesh.formats`.

Importing a format's module is cheap; the framework is imported by `Format.import_framework`, a step of its own whose
memory is charged to the worker.
"""
