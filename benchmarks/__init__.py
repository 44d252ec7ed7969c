"""Speed and memory of the library's ways beside what people would use instead."""

import os

# As ``python -m paperlib`` sets it, before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
