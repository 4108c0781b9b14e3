"""What a shell completes behind ``peftlab``: commands, options, groups, their files, keys and values.

A shell waits for it at each press of a key, so nothing is imported that costs time, no torch and no Hydra: what there
is to complete is read from the YAML files of ``conf/``, of which each says every key of its dataclass, and from the
source of commands and dataclasses, as text. Imports no torch.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from peftlab.allowed import here
from peftlab.errors import ConfigError, listed
from peftlab.shipped import config_folder
from peftlab.trusted import registered_methods

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGE = Path(__file__).resolve().parent

HYDRA = (
    "-m", "--multirun", "-cd", "--config-dir", "-cn", "--config-name", "--help", "--cfg", "--package", "--resolve",
    "--info",
)  # fmt: skip
"""Options of ``peftlab train``, which is a Hydra application."""
TAKES_CONFIG = ("train", "check", "estimate", "sweep")
"""Commands that are given groups and keys."""
_BASES = {
    "data": "data/base.py", "backbone": "backbones/config.py", "peft": "peft/base.py", "optim": "training/config.py",
    "schedule": "training/config.py", "logger": "training/config.py", "trainer": "training/config.py",
}  # fmt: skip
"""Where the fields stand that all files of a group share."""

BASH = """\
# peftlab in bash: eval "$(peftlab completion bash)", in ~/.bashrc for good
_peftlab() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" __complete bash "$COMP_WORDBREAKS" "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -o bashdefault -o default -F _peftlab peftlab
"""
ZSH = """\
#compdef peftlab
# peftlab in zsh: eval "$(peftlab completion zsh)" behind compinit, in ~/.zshrc for good
_peftlab() {
    local -a found open
    found=("${(@f)$("${words[1]}" __complete zsh "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    found=(${found:#})
    if (( ! ${#found} )); then _files; return; fi
    open=(${(M)found:#*[=.]})
    found=(${found:#*[=.]})
    (( ${#open} )) && compadd -Q -S '' -- "${open[@]}"
    (( ${#found} )) && compadd -Q -- "${found[@]}"
}
if (( ! $+functions[compdef] )); then autoload -Uz compinit && compinit; fi
compdef _peftlab peftlab
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}


def script(shell: str) -> str:
    """What ``peftlab completion SHELL`` prints.

    Raises:
        ConfigError: for a shell that has none.
    """
    if shell not in SCRIPTS:
        raise ConfigError(f"there is no completion for '{shell}', but for {listed(SCRIPTS)}: peftlab completion bash.")
    return SCRIPTS[shell]


def as_hydra_asks(words: Sequence[str]) -> str:
    """What Hydra's own ``-sc install=bash`` stands for here.

    Raises:
        ConfigError: for anything but ``install=`` and ``uninstall=``, with the command that prints the script.
    """
    what, _, shell = (words[0] if words else "").partition("=")
    if what == "install":
        return script(shell)
    if what == "uninstall" and shell in SCRIPTS:
        return "complete -r peftlab\n" if shell == "bash" else "compdef -d peftlab\n"
    raise ConfigError('-sc takes install=SHELL or uninstall=SHELL. In short: eval "$(peftlab completion bash)".')


def answer(words: Sequence[str], commands: Mapping[str, str]) -> str:
    """What ``peftlab __complete SHELL …`` prints: a candidate a line.

    Args:
        words: ``zsh`` and the words up to the one that is typed; or ``bash``, its word breaks, and the line so far.
        commands: of ``peftlab``.
    """
    shell, *rest = words
    if shell == "zsh":
        return "\n".join(candidates(rest, commands))
    breaks, line = rest
    typed = _split(line)[1:]
    # Bash replaces what stands behind the last word break, an '=' most often, and not the whole word.
    kept = max((typed[-1].rfind(sign) for sign in breaks if sign in "=:"), default=-1) + 1
    return "\n".join(one[kept:] for one in candidates(typed, commands))


def _split(line: str) -> list[str]:
    """The words of a line, the last one unfinished; empty behind a space."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return words if not closing and line[-1:].strip() else words if closing else [*words, ""]
    return line.split()


def candidates(words: Sequence[str], commands: Mapping[str, str]) -> list[str]:
    """What the last of ``words``, those behind ``peftlab``, may become."""
    *before, typed = words
    found: Iterator[str] | Sequence[str]
    if not before:
        found = [*commands, "--help", "--version"]
    else:
        command, before = _inner(before)
        found = _behind(command, before, typed)
    return sorted({one for one in found if one.startswith(typed) and one != typed})


def _inner(before: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and what was typed behind it; ``submit`` takes another one and its words."""
    command, *rest = before
    if command == "submit":
        for number, word in enumerate(rest):
            if word == "train":
                return word, rest[number + 1 :]
    return command, rest


def _behind(command: str, before: Sequence[str], typed: str) -> Iterator[str]:
    options = options_of(command)
    if typed.startswith("-"):
        yield from options
    elif before and before[-1] in options and options[before[-1]]:
        yield from options[before[-1]]
    elif command == "completion":
        yield from SCRIPTS
    elif command == "methods":
        yield from _files("peft", before)
    elif command == "table":
        yield from ("counts", "memory", *(file.stem for file in Path("sweeps/tables").glob("*.yaml")))
    elif command == "submit":
        yield "train"
    elif command == "explain":
        yield from (one.removesuffix("=") for one in _overrides(typed, before))
    elif command in TAKES_CONFIG:
        yield from _overrides(typed, before)


@cache
def options_of(command: str) -> dict[str, list[str]]:
    """Option of a command → what it may be followed by, where that is one of a few; from its source."""
    found: dict[str, list[str]] = {name: [] for name in (HYDRA if command == "train" else ("--help",))}
    try:
        tree = ast.parse((_PACKAGE / "commands" / f"{command.replace('-', '_')}.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return found
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            names = [str(one.value) for one in call.args if isinstance(one, ast.Constant)]
            choices = next((_constants(word.value) for word in call.keywords if word.arg == "choices"), [])
            found |= {name: choices for name in names if name.startswith("-")}
    return found


def _constants(node: ast.AST) -> list[str]:
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


# -- groups, files, keys, values -----------------------------------------------------------------


def _overrides(typed: str, before: Sequence[str]) -> Iterator[str]:
    """``peft=lora``, ``peft.rank=``, ``trainer.precision=bf16-mixed``, with the sign and the values in front."""
    sign = typed[: len(typed) - len(typed.lstrip("+~"))]
    key, equals, value = typed.removeprefix(sign).partition("=")
    groups = _groups(before)
    if equals:
        kept = f"{sign}{key}={value[: value.rfind(',') + 1]}"
        yield from (kept + one for one in (_files(key, before) if key in groups else _values(key, before)))
    elif "." in key:
        group = key.partition(".")[0]
        yield from (f"{sign}{group}.{one}" for one in _keys(_option(group, before)))
    else:
        yield from (f"{sign}{group}=" for group in groups)
        yield from (f"{sign}{group}." for group in groups if group in _BASES)
        yield from (f"{sign}{name}=" for name in _read(config_folder() / "train.yaml") if name not in _NO_KEYS)


_NO_KEYS = ("defaults", "hydra")


def _folders(before: Sequence[str]) -> list[Path]:
    """Where configs are looked for: what ``--config-dir`` names, or was allowed for this folder, too."""
    given = [after for option, after in pairwise(before) if option in ("-cd", "--config-dir")]
    if not given:
        with suppress(ConfigError):
            given = [one for one in [here().config_dir] if one is not None]
    return [*map(Path, given), config_folder()]


def _groups(before: Sequence[str]) -> list[str]:
    folders = {
        path.name for folder in _folders(before) if folder.is_dir() for path in folder.iterdir() if path.is_dir()
    }
    return sorted(folders - {"hydra"})


def _files(group: str, before: Sequence[str]) -> list[str]:
    found = {file.stem for folder in _folders(before) for file in (folder / group).glob("*.yaml")}
    return sorted({*found, *(registered_methods() if group == "peft" else ())})


def _option(group: str, before: Sequence[str]) -> dict[str, Any]:
    """The file of ``group`` that the line chooses, or that is chosen where nothing is said."""
    chosen = _defaults(config_folder() / "train.yaml")
    for word in before:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and key == "experiment":
            chosen |= _defaults(config_folder() / "experiment" / f"{value}.yaml")
        if equals and key == group:
            chosen[group] = value.partition(",")[0]
    files = [folder / group / f"{chosen.get(group)}.yaml" for folder in _folders(before)]
    return next((_read(file) for file in files if file.is_file()), {})


def _defaults(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in _read(file).get("defaults") or []:
        if isinstance(entry, dict):
            found |= {str(key).removeprefix("override ").strip("/ "): str(value) for key, value in entry.items()}
    return found


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if name in ("_target_", "defaults"):
            continue
        yield f"{prefix}{name}="
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _values(key: str, before: Sequence[str]) -> Iterator[str]:
    """What ``key`` may be, as far as it is one of a few; and what it is where nothing is said."""
    group, _, name = key.partition(".")
    values = _option(group, before) if name else _read(config_folder() / "train.yaml")
    value = values.get(name or group)
    if isinstance(value, bool):
        yield from ("true", "false")
    elif isinstance(value, str | int | float) and not str(value).startswith("$"):
        yield str(value)
    if name:
        yield from _listed_values(group, str(values.get("_target_", "")), name)


def _listed_values(group: str, target: str, name: str) -> Iterator[str]:
    """The values of a field that is annotated ``Literal[…]``, and ``null`` where it may be None."""
    files = [_PACKAGE / _BASES[group]] if group in _BASES else []
    if target.startswith("peftlab."):
        files.insert(0, _PACKAGE.joinpath(*target.split(".")[1:-1]).with_suffix(".py"))
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            continue
        named = {
            one.targets[0].id: one.value
            for one in tree.body
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                annotation = named.get(getattr(node.annotation, "id", ""), node.annotation)
                yield from (one for one in _constants(annotation) if re.fullmatch(r"[\w-]+", one))
                text = ast.unparse(node.annotation)
                yield from ("true", "false") if re.search(r"\bbool\b", text) else ()
                yield from ("null",) if re.search(r"\bNone\b", text) else ()
                return


@cache
def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
