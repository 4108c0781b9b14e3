"""``peftlab methods [NAME]``: the capability table from the registry, or one method explained."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, listed, nearest
from peftlab.peft.base import PEFTStrategy, methods
from peftlab.reference import field_docs, import_named, plain
from peftlab.report.published import replace_table, require_markers
from peftlab.report.render.markdown import markdown_table
from peftlab.report.render.terminal import console, print_facts, print_lines, print_table
from peftlab.report.table import Head, Table, plain_table
from peftlab.shipped import own_option
from peftlab.terminal import filled, flowed


def main(arguments: Sequence[str]) -> int:
    """Print the table, or the docstring and fields of one method."""
    parser = argparse.ArgumentParser("peftlab methods", description="List the PEFT methods, or explain one.")
    parser.add_argument("name", nargs="?", help="a method, for example lora")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--publish", metavar="FILE", help="put the Markdown table between its markers in FILE")
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs, whose peft/*.yaml name methods")
    given = parser.parse_args(list(arguments))
    if given.config_dir is not None:
        import_named("peft", given.config_dir)
    known = dict(methods())
    if given.publish is not None:
        path = Path(given.publish)
        require_markers(path, "methods")
        replace_table(path, "methods", f"{markdown(known)}\n")
        print(f"put the table of {len(known)} methods into {path}")
        return 0
    if given.name is None:
        print(markdown(known)) if given.markdown else _print(known)
        return 0
    if given.name not in known:
        raise ConfigError(
            f"there is no method '{given.name}'.{nearest(given.name, known)} There are: {listed(known)}. "
            f"{own_option('peft', given.name)}"
        )
    print(explain(known[given.name], console().width))
    return 0


COLUMNS = (
    "method",
    "what it is",
    "encoder",
    "decoder",
    "4/8-bit base",
    "identity at start",
    "mergeable",
    "HF peft file",
    "trainable without the head",
)
MEANINGS = {
    "encoder, decoder": "works on BERT and kin, on GPT-2, Llama and kin",
    "4/8-bit base": "works on a backbone whose frozen weights are quantised (backbone.quantize)",
    "identity at start": "before the first step the model computes what the backbone computes",
    "mergeable": "the update can be folded into the backbone's weights, for inference without extra cost",
    "HF peft file": "the peft_type of its file in the format of Hugging Face peft, or where that is to be found; none: "
    "the format has no such method",
}
HEAD = "A new head, as a classification has, trains beside it (backbone.train_head=false freezes it)."


def rows(known: dict[str, type[PEFTStrategy]]) -> list[tuple[str, ...]]:
    """One row a method, in the order of :data:`COLUMNS`."""
    return [(name, summary(cls), *capabilities(cls).values(), cls.count) for name, cls in known.items()]


def capabilities(cls: type[PEFTStrategy]) -> dict[str, str]:
    """What a method declares that it can do: column → yes, no, or a word."""
    supports = cls.supports
    flags = {
        "encoder": supports.encoder,
        "decoder": supports.decoder,
        "4/8-bit base": supports.quantized,
        "identity at start": supports.identity_at_start,
        "mergeable": supports.mergeable,
    }
    return {name: "yes" if holds else "no" for name, holds in flags.items()} | {
        "HF peft file": supports.hf_peft or "none"
    }


def summary(cls: type[PEFTStrategy]) -> str:
    """The first line of a method's docstring."""
    return (inspect.getdoc(cls) or "").split("\n")[0].rstrip(".")


def markdown(known: dict[str, type[PEFTStrategy]]) -> str:
    """The capability table as the README has it."""
    return markdown_table(plain_table([Head(name) for name in COLUMNS], rows(known)))


def tables(known: dict[str, type[PEFTStrategy]]) -> tuple[Table, Table]:
    """The same for a terminal, where it is too wide for one: what each method is, and what it can do."""
    every = rows(known)
    what = plain_table([Head("method"), Head("what it is"), Head(COLUMNS[-1])], [(*row[:2], row[-1]) for row in every])
    heads = [Head("method"), *(Head(name, optional=name == "HF peft file") for name in COLUMNS[2:-1])]
    return what, plain_table(heads, [(row[0], *row[2:-1]) for row in every])


def _print(known: dict[str, type[PEFTStrategy]]) -> None:
    out = console()
    what, can = tables(known)
    print_table(out, what)
    print_table(out, can, elsewhere="peftlab methods --markdown")
    print_facts(out, MEANINGS.items())
    print_lines(out, [HEAD, "peftlab methods NAME explains a method and its fields."])


def explain(cls: type[PEFTStrategy], width: int) -> str:
    """Source, docstring, what it can do, and each field with type, default and meaning."""
    module = inspect.getmodule(cls)
    about = (inspect.getdoc(module) or "") if module else ""
    lines = [f"peft={cls.name}    {cls.__module__}", "", flowed(plain(about), width), ""]
    own = [field for field in fields(cls) if field.init]
    lines.append("Fields (set with peft.<field>=…):" if own else "It has no fields.")
    meanings, inside = field_docs(cls), " " * 6
    for field in own:
        lines += filled(f"{field.name}: {field.type} = {_default(field)}", width, first="  ", then=inside)
        lines += filled(plain(meanings.get(field.name, "")), width, first=inside, then=inside)
    lines += ["", "What it can do:"]
    described = {**capabilities(cls), COLUMNS[-1]: cls.count}
    longest = max(map(len, described))
    for name, value in described.items():
        lines += filled(value, width, first=f"  {name.ljust(longest)}  ", then=" " * (longest + 4))
    return "\n".join([*lines, "", *filled(HEAD, width)])


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else "(required)"
