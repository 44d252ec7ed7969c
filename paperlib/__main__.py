"""``python -m paperlib``."""

from paperlib.cli import main

raise SystemExit(main())
