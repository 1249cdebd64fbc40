"""Several instances on machines of their own, real faults, and what clients see of them: `python -m bench.reliability`."""
