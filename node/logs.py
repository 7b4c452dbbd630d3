"""What the daemon says of itself, line by line: where it goes, and the last warnings for `status`.

Every line is `event=NAME key=value ...` with ids and digests; never row text, prompts or keys. Knows no part of the node.
"""

from __future__ import annotations

import logging
from collections import deque

from protocol.canon import Json


class RecentErrors(logging.Handler):
    """Keeps the last warnings for `status`."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.last: deque[dict[str, Json]] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record."""
        self.last.append(
            {"time": int(record.created * 1000), "code": record.levelname.lower(), "text": record.getMessage()[:300]}
        )
