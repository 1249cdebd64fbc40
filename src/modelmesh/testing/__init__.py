"""Test tools that ship: virtual time, fakes of every protocol, the simulator.

Fakes pass the contract suites of the real things.
"""
