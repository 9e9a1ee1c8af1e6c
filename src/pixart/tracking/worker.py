"""The process that talks to a service: JSON records from stdin, one answer per record on stdout. See tracker.py."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from pixart.extras import missing_extra
from pixart.tracking.services import Service, open_service


def main() -> int:
    answers = os.dup(1)
    os.dup2(2, 1)  # the services print to stdout whatever they like; it goes to the log
    os.nice(5)  # training comes first
    service: Service | None = None
    for line in sys.stdin:
        record = json.loads(line)
        try:
            if service is None:
                service = open_service(record)
                continue
            hand_over(service, record)
            answer: dict[str, Any] = {"ok": record["step"]}
        except BaseException as error:  # a service may raise anything, SystemExit too
            answer = {"error": reason(error)}
        with contextlib.suppress(BrokenPipeError):  # the run is gone; what it said is still to be delivered
            os.write(answers, json.dumps(answer).encode() + b"\n")
        if service is None:
            return 1
    if service is not None:
        service.finish()
    return 0


def hand_over(service: Service, record: dict[str, Any]) -> None:
    match record:
        case {"figures": figures}:
            service.figures(record["step"], figures)
        case {"pictures": pictures}:
            files = [(Path(row["path"]), row["caption"]) for row in pictures]
            service.pictures(record["step"], record["name"], files)
        case {"rows": rows}:
            cells = [[Path(cell["picture"]) if isinstance(cell, dict) else cell for cell in row] for row in rows]
            service.table(record["step"], record["name"], record["columns"], cells)
        case {"call": entry}:
            service.call(record["step"], entry)


def reason(error: BaseException) -> str:
    """One line; for a library that is missing, the line that installs it."""
    if isinstance(error, ModuleNotFoundError) and (known := missing_extra(error)):
        return str(known)
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
