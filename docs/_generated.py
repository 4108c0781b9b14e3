"""Pages that are made from the code when the site is built: keys, commands, methods, Python."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from peftlab.cli import COMMANDS, main
from peftlab.commands import methods as method_table
from peftlab.objectives.base import objectives
from peftlab.peft.base import PEFTStrategy, methods
from peftlab.records.predictions import COLUMNS_OF_ALL
from peftlab.reference import (
    ABOUT,
    RECIPES,
    ROLE,
    ROLES,
    Key,
    at_the_top,
    every_key,
    named_by,
    option,
    option_names,
    written,
)  # fmt: skip
from peftlab.sweeps.record_columns import column_meanings

REPOSITORY = Path(__file__).resolve().parents[1]
PLACES = {
    "Adapters in a model of your own": [
        "peftlab.library.attaching.attach", "peftlab.library.attaching.load_adapter", "peftlab.peft.adapter.Adapter",
    ],
    "Runs": [
        "peftlab.library.fitting.fit", "peftlab.library.run.load_run", "peftlab.library.run.Run",
        "peftlab.library.finding.find_runs",
    ],
}  # fmt: skip
"""The public API, apart from the methods, whose fields are on their pages."""
PROTOCOL = [
    "peftlab.peft.base.PEFTStrategy", "peftlab.peft.base.Supports", "peftlab.peft.base.Selection",
    "peftlab.backbones.base.Target", "peftlab.peft.delta.Delta", "peftlab.peft.parts.Parts", "peftlab.peft.surgery",
]  # fmt: skip
"""What a method is made of: what one who writes a method subclasses, gets and calls."""

TRAIN = """\
It takes `group=option` and `key=value` ([all of them](keys.md)), and Hydra's options: `-m` for the jobs of values with
commas, `--config-dir` for configs of your own, `--cfg job` to print the composed config.
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ lead to the repository's files as text: they are no pages of the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./(?!how_to|reference|[a-z_]+\.md)[^)]*\)", r"`\1`", markdown)


_ROLE_IN_HTML = re.compile(ROLE.pattern.replace("`(", "<code>(").replace(")`", ")</code>").replace("[^`]", "[^<]"))


def on_page_content(html: str, **_: Any) -> str:
    """What mkdocstrings makes of docstrings: a reference is the name that it shows."""
    return _ROLE_IN_HTML.sub(lambda role: f"<code>{named_by(role)}</code>", html)


def pages() -> dict[str, str]:
    """Path → Markdown."""
    known = dict(methods())
    return {
        "reference/keys.md": keys_page(),
        "reference/columns.md": columns_page(),
        "reference/commands.md": commands_page(),
        "reference/methods.md": methods_page(known),
        **{f"reference/methods/{name}.md": method_page(name, cls) for name, cls in known.items()},
        "reference/predictions.md": predictions_page(),
        "reference/python.md": python_page(),
        "reference/extending.md": extending_page(),
    }


def keys_page() -> str:
    """Every group, its options and all keys."""
    parts = [
        "# Keys\n",
        "Every run is composed of groups (`data=text_files`) and keys (`data.batch_size=16`), on the command line, in "
        "files of `--config-dir` and in the overrides of a sweep. `peftlab explain KEY` says the same in a terminal.\n",
        *(f"- **{name}**: {ROLES[name]}." for name in ROLES),
    ]
    grouped: dict[str, list[tuple[tuple[str, ...], Key]]] = {}
    for group, options, key in every_key():
        grouped.setdefault(group, []).append((options, key))
    for group in ["", *(group for group in ABOUT if group not in RECIPES)]:
        parts.append(f"\n## {group or 'Of no group'}\n")
        if group:
            parts.append(f"{ABOUT[group][0].upper()}{ABOUT[group][1:]}.\n")
            parts += [f"- `{group}={name}`: {_cell(option(group, name).summary)}" for name in option_names(group)]
        for options, key in grouped[group]:
            of = "" if not group or len(options) == len(option_names(group)) else f" *{', '.join(options)}*"
            parts.append(f"\n### `{group}.{key.name}`{of}\n" if group else f"\n### `{key.name}`\n")
            value = key.default or ("" if group else written(at_the_top().get(key.name, "")))
            default = f"default `{value}`" if value else "must be given"
            role = "" if key.role == "decides" else f" *{key.role}*"
            parts.append(f"{_cell(key.meaning)} Takes {_cell(key.allowed)}; {default}.{role}")
    for group in RECIPES:
        parts.append(f"\n## {group}\n\n{ABOUT[group][0].upper()}{ABOUT[group][1:]}.\n")
        for name in option_names(group):
            found = option(group, name)
            parts.append(f"### {group}={name}\n\n```text\n{found.about}\n```\n")
            parts += [f"- `{key}={written(value)}`" for key, value in _flat(found.values)]
    return "\n".join(parts) + "\n"


def columns_page() -> str:
    """Every number of a record that a column can show."""
    rows = [f"| `{place}` | {_cell(meaning)} |" for place, meaning in column_meanings().items()]
    head = (
        "# Columns\n\nA column of a table is a place in record.json: in a [sweep's file](../sweep_files.md) "
        "`value: PLACE`, with `peftlab report` and `peftlab runs` `--columns PLACE,…`, where a key of the config "
        "(`peft.rank`) is one, too. `peftlab explain columns` says the same in a terminal. Figures are those of the "
        "run's objective.\n"
    )
    return "\n".join([head, "| place | what stands there |", "|---|---|", *rows]) + "\n"


def commands_page() -> str:
    """What each command's --help says."""
    parts = ["# Commands\n", "`peftlab COMMAND --help` says the same.\n"]
    for command, about in COMMANDS.items():
        parts.append(f"## {command}\n\n{about[0].upper()}{about[1:]}.\n")
        if command == "train":
            parts.append(TRAIN)
            continue
        parts.append(f"```text\n{_help(command)}```\n")
    return "\n".join(parts)


def _help(command: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return said.getvalue()


def methods_page(known: dict[str, type[PEFTStrategy]]) -> str:
    """The capability table, with a link a method."""
    table = method_table.markdown(known)
    for name in known:
        table = table.replace(f"| {name} |", f"| [{name}](methods/{name}.md) |", 1)
    meanings = "\n".join(f"- **{name}**: {meaning}." for name, meaning in method_table.MEANINGS.items())
    return f"# Methods\n\n{table}\n\n{meanings}\n\n{method_table.HEAD} [Choosing one](../how_to/choose_a_method.md).\n"


def method_page(name: str, cls: type[PEFTStrategy]) -> str:
    """Equation, source and departures; fields; what it did here."""
    import inspect

    module = inspect.getmodule(cls)
    doc = (inspect.getdoc(module) or "") if module else ""
    found = option("peft", name) if name in option_names("peft") else None
    parts = [f"# {name}\n", f"{_document(doc)}\n"]
    if found is not None:
        parts.append(f"```sh\npeftlab explain peft={name}\n```\n")
    parts.append("| field | meaning | takes | default |\n|---|---|---|---|")
    parts += [
        f"| `peft.{key.name}` | {_cell(key.meaning)} | {_cell(key.allowed)} | `{key.default or '(required)'}` |"
        for group, names, key in every_key()
        if group == "peft" and name in names
    ]
    can = method_table.capabilities(cls)
    parts.append("\n" + "\n".join(f"- {what}: {can[what]}" for what in can) + f"\n- trainable: {cls.count}\n")
    rows = results_of(name)
    if rows:
        head, lines = rows
        parts.append("## What it did here\n")
        parts.append(
            "1,000 IMDb reviews of 64 tokens on MiniLM, three seeds; the learning rate was chosen on validation from a "
            "grid (RESULTS.md has the table, the grid and how it was run).\n"
        )
        parts += [*head, *lines]
    return "\n".join(parts) + "\n"


def results_of(name: str) -> tuple[list[str], list[str]] | None:
    """The rows of the table of all methods that are of ``name``, and its head; None: it is not in it."""
    sweep = yaml.safe_load((REPOSITORY / "sweeps" / "methods_compared.yaml").read_text(encoding="utf-8"))
    labels = [cell["label"] for cell in sweep["cells"] if f"peft={name}" in cell["overrides"]]
    text = (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")
    table = text.partition("<!-- table methods_compared -->")[2].partition("\n\n")[0].strip().splitlines()
    rows = [line for line in table if line.split(" | ")[0].removeprefix("| ") in labels]
    return (table[:2], rows) if rows else None


def predictions_page() -> str:
    """The columns of predictions.parquet, as every objective says its own."""
    parts = [
        "# Predictions\n",
        "Every run leaves `predictions.parquet`, a row a test row in the order of the split (`pandas.read_parquet` "
        "reads it); `peftlab diff RUN RUN --rows` compares two. `peftlab evaluate RUN --predictions FILE` writes the "
        "same with the texts.\n",
        "## Of every run\n",
        *_columns(COLUMNS_OF_ALL),
    ]
    for name, objective in objectives().items():
        if objective.columns:
            about = f"{objective.about[:1].upper()}{objective.about[1:]}.\n"
            parts += [f"\n## {name}\n", about, *_columns(objective.columns)]
    return "\n".join(parts) + "\n"


def _columns(columns: Mapping[str, str]) -> list[str]:
    return [
        "| column | what it holds |\n|---|---|",
        *(f"| `{name}` | {_cell(what)} |" for name, what in columns.items()),
    ]


def python_page() -> str:
    """The public API, rendered by mkdocstrings."""
    parts = ["# Python\n", "`from peftlab import attach, fit, …`; [how to work from Python](../how_to/python.md).\n"]
    for title, names in PLACES.items():
        parts.append(f"# {title}\n")
        parts += [f"::: {name}\n" for name in names]
    parts.append("# Methods\n\nEvery method is a class of the package, its fields are its arguments, by name:\n")
    parts += [f"- `peftlab.{cls.__name__}`: [{name}](methods/{name}.md)" for name, cls in methods()]
    return "\n".join(parts) + "\n"


def extending_page() -> str:
    """The protocol of a method, rendered by mkdocstrings."""
    parts = [
        "# What a method is made of\n",
        "A method is a `PEFTStrategy`: its `select` finds `Target`s in a clean model and returns a `Selection`; its "
        "`build` puts a `Delta` on each and returns the [`Adapter`](python.md), which is filled by what it has from "
        "`Parts` (`put`, `train_own`, `add`, `hold`). [Add a method](../how_to/method.md) has one to copy.\n",
    ]
    return "\n".join([*parts, *(f"::: {name}\n" for name in PROTOCOL)])


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _document(docstring: str) -> str:
    """A docstring as Markdown: prose and lists as such, and what is indented, equations and commands, as it stands."""
    return "\n\n".join(
        f"```text\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else _prose(block)
        for block in docstring.split("\n\n")
    )


def _prose(text: str) -> str:
    """Text of a docstring as Markdown: names are code, and no other sign means anything."""
    parts = ROLE.sub(lambda role: f"``{named_by(role)}``", text).split("``")
    return "".join(f"`{part}`" if number % 2 else _literal(part) for number, part in enumerate(parts))


def _literal(text: str) -> str:
    return re.sub(r"([\\`*_\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    """``text`` inside a cell of Markdown."""
    return _prose(text).replace("|", "\\|").replace("\n", " ")
