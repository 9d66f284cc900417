"""One step in a process of its own: `python -m proof.gpu.step NAME DEVICE FOLDER`; a line of JSON for each row."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import warnings
from pathlib import Path

from proof.gpu import MARK, Check, Row


def tell(row: Row) -> None:
    """Print a row at once, so that what comes later cannot take it away."""
    print(MARK + json.dumps(row._asdict()), flush=True)


def main(name: str, device: str, folder: Path) -> None:
    """Run the checks of a step, each whatever became of those before."""
    checks: tuple[Check, ...] = importlib.import_module(f"proof.gpu.{name}").CHECKS
    for check in checks:
        place = folder / f"{name}-{check.__name__}"
        place.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                for row in check(device, place):
                    tell(row)
            except Exception as error:
                traceback.print_exc()
                tell(Row(check.__name__, f"{type(error).__name__}: {str(error)[:300]}", "no error", False))
        for text in sorted({str(warning.message).splitlines()[0][:200] for warning in caught}):
            print(f"warning in {check.__name__}: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
