"""The page at `/`: what a browser gets. Plain files in web standards: nothing to build, nothing from elsewhere.

All that the page shows and does goes through the HTTP API, under the user's key.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "files"
