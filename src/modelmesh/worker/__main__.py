"""`python -m modelmesh.worker`: see `process`."""

import sys

from modelmesh.worker.process import main

sys.exit(main(sys.argv[1:]))
