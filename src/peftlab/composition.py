"""Hydra as peftlab uses it: composing, and its errors in peftlab's words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftlab import interpolations
from peftlab.config import GROUPS, RunConfig, check
from peftlab.errors import ConfigError, first_line, listed, nearest
from peftlab.hydra_changes import SELECTORS, exchange, one_option
from peftlab.shipped import config_folder, own_option
from peftlab.training.ranks import Ranks
from peftlab.trusted import registered_methods

exchange()

interpolations.register()


def run_as_hydra_application(arguments: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    """Hand ``arguments`` to Hydra, which composes the config and calls ``task`` (or the launcher, for ``-m``)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    whole_argv = sys.argv[:]
    raised: list[Exception] = []

    def restored(config: DictConfig) -> None:
        # Lightning starts the other ranks of a DDP run by calling sys.argv again: it needs the command.
        sys.argv[:] = whole_argv
        try:
            task(config)
        except Exception as error:  # kept from Hydra, which would announce it in its own words
            raised.append(error)

    sys.argv[:] = ["peftlab train", *arguments]
    application = hydra_main(version_base="1.3", config_path=str(config_folder()), config_name="train")(restored)
    try:
        with _errors_in_words(arguments):
            application()
    finally:
        sys.argv[:] = whole_argv
    if raised:
        raise raised[0]


def composed(overrides: Sequence[str], *, config_dir: str | None = None, config_name: str = "train") -> DictConfig:
    """The config that ``overrides`` compose to, with the ``hydra`` node, which HydraConfig then holds too."""
    with _errors_in_words(overrides):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_folder()), version_base="1.3", job_name="peftlab train"):
            if config_dir is not None:
                _search_also(config_dir)
            config = compose(config_name, overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
    return config


def _search_also(config_dir: str) -> None:
    """Put a folder where Hydra's own -cd flag puts it, so that a primary config is found in it too."""
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder.")
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    path = hydra.config_loader.get_search_path()
    path.prepend("command-line", f"file://{Path(config_dir).resolve()}", anchor=SearchPathQuery(provider="schema"))
    hydra.config_loader = ConfigLoaderImpl(config_search_path=path)


def jobs_of(overrides: Sequence[str], *, config_dir: str | None = None, config_name: str = "train") -> list[list[str]]:
    """The overrides of each job of ``-m``, as ``peftlab train -m`` runs them.

    Raises:
        ConfigError: for an override that is not of the form key=value, or for a range that only a search can draw from.
    """
    with _errors_in_words(overrides):
        parser = OverridesParser.create()
        single = [o.input_line for o in parser.parse_overrides(list(overrides)) if not o.is_sweep_override()]
        base = composed([str(line) for line in single], config_dir=config_dir, config_name=config_name)
        params = base.hydra.sweeper.get("params") or {}
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_folder()), version_base="1.3", job_name="peftlab train"):
            if config_dir is not None:
                _search_also(config_dir)
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            sweep = [*(f"{key}={value}" for key, value in params.items()), *overrides]
            parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(sweep)  # for glob()
            return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def checked(overrides: Sequence[str]) -> RunConfig:
    """Compose ``overrides`` and check the result, as a run of this machine."""
    config = check(composed(overrides))
    config.trainer = Ranks().settle(config.trainer)
    return config


@contextmanager
def _errors_in_words(arguments: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except OverrideParseException as error:
        raise ConfigError(_about_key(error, arguments) or _about_syntax(error)) from error
    except MissingConfigException as error:
        raise ConfigError(_about_missing(error, arguments)) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
        raise ConfigError(f"{place}: not valid YAML: {error.problem}.") from error
    except HydraException as error:
        raise ConfigError(_about_composition(error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {first_line(error)}") from error


_NEEDS_QUOTES = re.compile(r"^~|[^\w\s./:+@%?|*=-]|[^\x00-\x7f]", re.ASCII)
"""What Hydra's grammar does not take in a plain value; backslashes, quotes, brackets, commas mean something there."""


_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_SEPARATOR = ("sep", "separator", "delimiter", "delim")
"""What people call the sign between columns of a csv."""


def _about_key(error: OverrideParseException, arguments: Sequence[str]) -> str:
    """That there is no such key, whatever is wrong with its value; empty if there is one."""
    key, equals, _ = str(error.override).partition("=")
    if not equals or not _PLAIN_KEY.fullmatch(key):
        return ""
    others = [*filter(_readable, arguments)]
    with suppress(ConfigError):  # what is wrong with the others comes second
        composed(others)
        try:
            composed([*others, f"{key}=null"])
        except ConfigError as about_key:
            return str(about_key)
    return ""


def _readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except HydraException:
        return False
    return True


def _about_syntax(error: OverrideParseException) -> str:
    given = error.override
    key, equals, value = str(given).partition("=")
    plain = equals and key.strip() == key and not set(value) & set("\"'\\[]{},$")
    if plain and _NEEDS_QUOTES.search(value):
        return (
            f"cannot read '{given}': a value that begins with ~, or has letters beyond ASCII or signs such as ( or "
            f"!, is written in quotes, and those in quotes for the shell: '{key}=\"{value}\"'"
        )
    return (
        f"cannot read '{given}': write key=value, without spaces around '='; quote values that hold "
        f"brackets, commas or '=' as 'key=\"…\"'. ({first_line(error)})"
    )


def _about_missing(error: MissingConfigException, arguments: Sequence[str]) -> str:
    """A group option, or a config named with --config-name, for which there is no file."""
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not group:
        return f"there is no config '{wanted}'. {first_line(error)}"
    options = sorted(error.options or [path.stem for path in (config_folder() / group).glob("*.yaml")])
    if group == "peft":
        options = sorted({*options, *registered_methods()})
    given = next((a for a in arguments if re.fullmatch(rf"\+?{re.escape(wanted.replace('/', '='))}", a)), None)
    return (
        f"unknown option {given or f'{group}={option}'}.{nearest(option, options)} "
        f"The options of '{group}' are: {listed(options)}. {own_option(group, option)}"
    )


def _about_composition(error: HydraException) -> str:
    """An override of a key or group that does not exist, most often a typo."""
    text = str(error)
    cause = error.__cause__
    if (kind := re.search(r"does not support sweep type : (\w+)_SWEEP", text)) is not None:
        return (
            f"{kind[1].lower()}(…) has no list of values that -m could run. Write values with commas, choice(…), "
            "range(…) or glob(…); a search draws from ranges: `search:` in the file of a sweep."
        )
    if (several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", text)) is not None:
        return _about_several(several[1])
    if (again := re.search(r"Multiple values for (\S+?)\. .*'override \S+: (\S+)'", text)) is not None:
        key, value = again.groups()
        return f"+{key}=… adds a second option to the group '{key}', which takes one: write {key}={value}, without +."
    match = re.search(r"Could not override '([^']+)'", text)
    if match is None:
        return " ".join(text.split())
    key = match.group(1)
    parent = getattr(cause, "parent_node", None)
    group, _, name = key.rpartition(".")
    if isinstance(parent, DictConfig):
        full_key = getattr(cause, "full_key", None) or key
        group, _, name = str(full_key).rpartition(".")
        allowed = [str(child) for child in parent if child not in ("_target_", "hydra")]
        allowed += [] if group else SELECTORS
        where = f"keys of '{group}'" if group else "top-level keys and groups"
        found = " The separator of a csv is found by its header line." if name in _SEPARATOR else ""
        return f"unknown key '{full_key}'.{nearest(name, allowed)}{found} The {where} are: {listed(set(allowed))}."
    if cause is not None and key not in GROUPS:
        return f"{key}: {first_line(cause)}"
    top = [*RunConfig.__dataclass_fields__, *SELECTORS]
    return f"unknown key or group '{key}'.{nearest(key, top)} There are: {listed(top)}."


def _about_several(given: str) -> str:
    """Values for several runs, where one run was asked for."""
    key, _, value = given.partition("=")
    group = key.lstrip("+~")
    words = value.split(",")
    if group in (*GROUPS, "trainer", *SELECTORS) and re.fullmatch(r"[\w,]+", value):
        return f"{given} {one_option(group, words)}"
    ways = ["For a run of each: train -m, check -m, or `grid` in a sweep's file"]
    if "(" not in value:
        ways += [f"for one list: '{key}=[{value}]'", f"for one text with commas: '{key}=\"{value}\"'"]
    return f"{given} gives several values, and a run takes one. {'; '.join(ways)}."


def parse(overrides: Sequence[str]) -> None:
    """Raise ConfigError for the first override that is not of the form key=value."""
    with _errors_in_words(overrides):
        OverridesParser.create().parse_overrides(list(overrides))


def override_keys(overrides: Sequence[str]) -> list[str]:
    """The key, or the group, that each override sets or takes out, without its signs.

    Raises:
        ConfigError: for an override that is not of the form key=value.
    """
    with _errors_in_words(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed]


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Key → value of each override, as plain containers with interpolations resolved.

    Raises:
        ConfigError: for an override that is not of the form key=value, or an interpolation that leads nowhere.
    """
    found: dict[str, Any] = {}
    with _errors_in_words(overrides):
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            wrapped = OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)
            assert isinstance(wrapped, dict)
            found[override.key_or_group] = wrapped["value"]
    return found
