"""`python app.py` starts the page in a hosted notebook or a Space; see docs/app.md, "On a Space or in a notebook"."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))  # such places install requirements.txt, but not the package

from pixart.cli import main

if __name__ == "__main__":
    # A Space names itself, and says where Gradio is to listen; elsewhere, only this machine is to see the page.
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(main(["app", "--host", host, "--port", port, *sys.argv[1:]]))
