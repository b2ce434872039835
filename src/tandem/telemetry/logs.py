"""Log lines: one format for every process of the service, on standard error."""

import logging
import sys


def configure(level: str) -> None:
    """Send everything at ``level`` (``debug`` … ``error``) and above to standard error, a line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
