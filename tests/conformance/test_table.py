"""The table says of each cell what came out of it, and its exit status whether all is well."""

from __future__ import annotations

import pytest

from tests.conformance import table
from tests.conformance.cells import Outcome
from tests.conformance.expectations import REFUSALS

COLUMNS = len(table.columns())


def test_cells_footnotes_failures_and_counts() -> None:
    (method, kind, _), _ = next(iter(REFUSALS.items()))
    refused = [
        Outcome(refusal=f"no such thing in {one}") if one == kind or kind == "*" else Outcome()
        for one, _ in table.columns()
    ]
    failing = [Outcome(failures=("gradients: zero", "padding: differs")), *[Outcome()] * (COLUMNS - 1)]
    *lines, last = table.rendered({"good": [Outcome()] * COLUMNS, method: refused, "bad": failing}).splitlines()
    (good,) = (line for line in lines if line.startswith("good "))
    assert good.split()[1:] == ["ok"] * COLUMNS
    (of_refused,) = (line for line in lines if line.startswith(f"{method} "))
    count = sum(outcome.refusal is not None for outcome in refused)
    assert of_refused.split().count("refused¹") == count > 1
    assert sum(line.startswith("¹ no such thing") for line in lines) == 1, "one reason, one footnote"
    (of_failing,) = (line for line in lines if line.startswith("bad ") and "FAILED" in line)
    assert "FAILED: gradients …" in of_failing
    assert "bad on bert, fp32: padding: differs" in lines
    passed = 3 * COLUMNS - count - 1
    assert last == f"{passed} passed, {count} refused with a reason, 1 failing (3 methods × {COLUMNS} backbones)"


@pytest.mark.parametrize(("failures", "status"), [((), 0), (("padding: differs",), 1)])
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: tuple[str, ...], status: int
) -> None:
    monkeypatch.setattr(table, "examine", lambda *_: Outcome(failures=failures))
    assert table.main(["lora"]) == status
    assert ("FAILED: padding" in capsys.readouterr().out) == bool(failures)
    assert table.main(["haed"]) == 2
    assert "no method 'haed'" in capsys.readouterr().err
