"""Found by every Python that a process without Linux starts: it has none either."""

import os
import sys

if os.environ.get("WITHOUT_LINUX"):
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import without_linux  # noqa: F401
