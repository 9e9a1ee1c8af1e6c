"""A terminal that shows what we say, and not what the libraries say."""

import os
import warnings


def quiet_libraries() -> warnings.catch_warnings:
    """Keep the libraries' own chatter off the terminal, and them off the network.

    Their switches are in the environment, which they read as they are imported: those hold for the rest of the
    process, and for the processes it starts. Python's warnings come back when the returned context ends.
    """
    from pixart.checkpoints.hub import keep_libraries_offline

    keep_libraries_offline()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
    ):
        os.environ.setdefault(name, value)
    return warnings.catch_warnings(action="ignore")
