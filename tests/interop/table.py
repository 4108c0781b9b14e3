"""``python -m tests.interop.table``: the exchange with HF peft as a table, a line a method."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from tests.interop.exchange import KINDS, METHODS, TOLERANCE, ours_to_ours, ours_to_peft, peft_to_ours

WAYS = {"ours → peft": ours_to_peft, "peft → ours": peft_to_ours, "ours → ours": ours_to_ours}


def main() -> None:
    warnings.simplefilter("ignore")
    columns = [f"{way}, {kind}" for kind in KINDS for way in WAYS]
    print("largest difference of logits".ljust(30) + "  ".join(column.rjust(18) for column in columns))
    good = 0
    for name, case in METHODS.items():
        cells = []
        for kind in KINDS:
            for run in WAYS.values():
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        cells.append(run(name, case, kind, Path(folder) / "adapter"))
                    except Exception as error:  # the table shows what failed
                        print(f"{name} {run.__name__} {kind}: {type(error).__name__}: {error}")
                        cells.append(float("inf"))
        good += all(cell < TOLERANCE for cell in cells)
        print(name.ljust(30) + "  ".join(f"{cell:.1e}".rjust(18) for cell in cells))
    print(f"{good} of {len(METHODS)} methods within {TOLERANCE:g}")


if __name__ == "__main__":
    main()
