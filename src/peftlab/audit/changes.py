"""What is other now than when a record was written: packages, machine, code. Imports torch only when asked."""

from __future__ import annotations

from typing import Any

from peftlab.records import environment


def changes(record: dict[str, Any]) -> list[str]:
    """One line for each part of the environment that differs between ``record`` and this process.

    Asks torch for its accelerators and threads, so it imports torch.
    """
    config = record["config"]
    hardware = environment.hardware()
    if (threads := config["trainer"].get("threads")) is not None:
        hardware["torch_threads"] = threads  # the run sets them itself
    return [
        *_differences("", record["versions"], environment.versions()),
        *_differences("", record["hardware"], hardware),
        *_code(record["git"], environment.git_state()),
    ]


def _differences(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{prefix}{name}: {_words(before.get(name))} in the record, {_words(now.get(name))} here"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _code(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    lines = []
    if before["revision"] != now["revision"]:
        lines.append(f"git revision: {_revision(before)} in the record, {_revision(now)} here")
    lines += [
        f"uncommitted changes to the code {where}: the revision alone does not say what ran"
        for state, where in ((before, "in the record"), (now, "here"))
        if state["dirty"]
    ]
    return lines


def _revision(state: dict[str, Any]) -> str:
    return str(state["revision"])[:12] if state["revision"] else "none (an installed wheel)"
