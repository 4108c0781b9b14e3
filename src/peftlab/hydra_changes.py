"""What Hydra does otherwise here: methods of its own, exchanged once in a process.

- ``backbone.architecture`` holds settings of a model type of transformers, which its file cannot list. An override may
  add any that the type has: ``backbone.architecture.pad_token_id=3``. A mapping with settings that are not there,
  ``backbone.architecture={model_type: gpt2, n_embd: 64}``, stands for the whole; else it changes what it names.
- A YAML file is looked at before it is read: brackets and aliases without end are refused. Text that was parsed before
  in this process is not parsed again; the files are read each time.
- A method that another package has registered is an option of ``peft`` without a file.
- A group takes one option. Hydra would merge the files of a list, ``peft=[lora,dora]``, so that the last one stays.
- An application composes once. Hydra's own composes a first time to see whether ``hydra.mode`` says what -m says.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra.core.default_element import GroupDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from peftlab.config import GROUPS
from peftlab.errors import ConfigError
from peftlab.peft.base import method_elsewhere
from peftlab.reading import Unreadable, require_harmless

OPEN = "backbone.architecture"

SELECTORS = ("experiment", "debug")
"""Groups that choose a recipe over the others and are not part of a run themselves."""


def exchange() -> None:
    """Let Hydra of this process do as the module says; again is nothing."""
    if ConfigLoaderImpl._apply_overrides_to_config is not _apply:
        ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_apply)  # type: ignore[method-assign]
        ConfigRepository.load_config = _load  # type: ignore[method-assign]
        Hydra.get_mode = _mode  # type: ignore[method-assign]
        ConfigLoaderImpl.load_configuration = _configuration  # type: ignore[method-assign]
        GroupDefault.get_options = _options  # type: ignore[method-assign]


def opened(override: Override, config: DictConfig) -> bool:
    """Let ``override`` add settings to the open mapping of ``config``; return whether it does."""
    key, node = str(override.key_or_group), _open_node(config)
    if node is None or not (key == OPEN or key.startswith(f"{OPEN}.")) or override.is_delete():
        return False
    OmegaConf.set_struct(node, False)
    value = override.value()
    if key != OPEN:
        return key.removeprefix(f"{OPEN}.").partition(".")[0] not in node
    if not isinstance(value, dict) or set(value) <= set(node):
        return False
    for name in list(node):
        del node[name]
    return True


def require_known(config: DictConfig) -> None:
    """Refuse settings that the model type does not have.

    Raises:
        BackboneError: naming the setting and the nearest that there is.
    """
    from peftlab.backbones.networks import random_config

    given = OmegaConf.to_container(_open_node(config) or OmegaConf.create(), resolve=False)
    assert isinstance(given, dict)
    if not isinstance(given.get("model_type"), str):
        raise ConfigError(f"{OPEN} must name its model_type, for example {OPEN}={{model_type: bert, hidden_size: 32}}.")
    random_config({str(name): value for name, value in given.items()}, 2, head="none")


def _open_node(config: DictConfig) -> DictConfig | None:
    backbone = config.get("backbone")
    node = backbone.get("architecture") if isinstance(backbone, DictConfig) else None
    return node if isinstance(node, DictConfig) else None


_plainly_apply: Callable[[list[Override], DictConfig], None] = ConfigLoaderImpl._apply_overrides_to_config
_plainly_load: Callable[[ConfigRepository, str], ConfigResult | None] = ConfigRepository.load_config
_plainly_read: Callable[[FileConfigSource, str], ConfigResult] = FileConfigSource.load_config
_plainly_tell_mode: Callable[..., Any] = Hydra.get_mode
_plainly_configure: Callable[..., DictConfig] = ConfigLoaderImpl.load_configuration
_plain_options: Callable[[GroupDefault], list[str]] = GroupDefault.get_options


def _apply(overrides: Sequence[Override], cfg: DictConfig) -> None:
    added = False
    for override in overrides:
        added = opened(override, cfg) or added
        _plainly_apply([override], cfg)
    if added:
        require_known(cfg)


def _load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    for source in self.get_sources():
        file = Path(source.path) / source._normalize_file_name(config_path)
        if source.scheme() == "file" and file.is_file():
            _require_harmless(file)
            type(source).load_config = _read  # type: ignore[assignment, method-assign]  # Hydra loads its plugins anew
            break
    return _plainly_load(self, config_path) or _generated(config_path)


GENERATED: set[str] = set()
"""Methods whose file this process has made up: what their classes say is in no file."""


def _generated(config_path: str) -> ConfigResult | None:
    """What a file of a method would say that has none, of another package or the program itself: its fields' defaults.

    Without such packages nothing is imported.
    """
    group, _, name = config_path.partition("/")
    cls = method_elsewhere(name) if group == "peft" else None
    if cls is None:
        return None
    values: dict[str, Any] = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
    for field in dataclasses.fields(cls):
        if field.init:
            made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            values[field.name] = "???" if made is dataclasses.MISSING else made
    GENERATED.add(name)
    header = ConfigSource._get_header_dict("")
    return ConfigResult(
        config=OmegaConf.create(values), path=f"class://{values['_target_']}", provider="class", header=header
    )


def _require_harmless(file: Path) -> None:
    try:
        require_harmless(file)
    except (OSError, Unreadable) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError:
        pass  # Hydra says where the mistake is


def _read(self: FileConfigSource, config_path: str) -> ConfigResult:
    try:
        text = Path(os.path.realpath(Path(self.path) / self._normalize_file_name(config_path))).read_text("utf-8")
        content = _parsed(text)
    except (OSError, ValueError, yaml.YAMLError):
        return _plainly_read(self, config_path)  # which says what is wrong, and where
    return ConfigResult(
        config=OmegaConf.create(content),  # nodes of its own: whoever composes changes them
        path=f"{self.scheme()}://{self.path}",
        provider=self.provider,
        header=ConfigSource._get_header_dict(text[:512]),
    )


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[Any, Any] | list[Any]:
    """As ``OmegaConf.load`` parses it; ValueError for what is no mapping and no list, which is treated apart there."""
    content = yaml.load(text, Loader=get_yaml_loader())
    if not isinstance(content, dict | list):
        raise ValueError
    return content


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """``hydra.mode`` of the config; what was composed to see it is kept for the run."""
    try:
        config = self.compose_config(config_name, list(overrides), RunMode.RUN)
    except Exception:  # values for several jobs, or a mistake, which composing for the run will say
        return _plainly_tell_mode(self, config_name, overrides)
    kept = (config_name, [*overrides, "hydra.mode=RUN"]), config  # what Hydra adds to the overrides next
    self.config_loader._composed = kept  # type: ignore[attr-defined]
    return config.hydra.mode


def _configuration(
    self: ConfigLoaderImpl,
    config_name: str | None,
    overrides: list[str],
    run_mode: RunMode,
    from_shell: bool = True,
    validate_sweep_overrides: bool = True,
) -> DictConfig:
    asked, config = self.__dict__.pop("_composed", (None, None))
    if run_mode != RunMode.RUN or asked != (config_name, overrides):
        return _plainly_configure(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
    assert isinstance(config, DictConfig)
    config.hydra.mode = RunMode.RUN
    config.hydra.overrides.hydra.append("hydra.mode=RUN")
    return config


def _options(self: GroupDefault) -> list[str]:
    """The files that a list chooses, of a group that Hydra or somebody else has added.

    Raises:
        ConfigError: for one of peftlab's own groups.
    """
    group, chosen = self.get_group_path(), _plain_options(self)
    if group in GROUPS or group in ("trainer", *SELECTORS):
        raise ConfigError(f"{group}=[{','.join(chosen)}] {one_option(group, chosen)}")
    return chosen


def one_option(group: str, chosen: Sequence[str]) -> str:
    """Why several options of a group are refused, and what to do instead; the sentence begins with its verb."""
    if len(chosen) < 2:
        name = chosen[0] if chosen else "NAME"
        return f"is a list, and a run takes one option of '{group}': write {group}={name}."
    names = ",".join(chosen)
    instead = [f"choose one, {group}={chosen[0]}"]
    if group in _SEVERAL_AT_ONCE:
        instead.append(_SEVERAL_AT_ONCE[group].format(names=names))
    if group != "logger":  # the runs would be one and the same
        instead.append(f"for a run of each train -m {group}={names}")
    said = "; ".join(instead)
    return f"names {len(chosen)} options, and a run takes one option of '{group}': {said}."


_SEVERAL_AT_ONCE = {
    "peft": "for several on one backbone peft=compose 'peft.methods=[{names}]'",
    "logger": "for several at once logger=several 'logger.loggers=[{names}]'",
    "data": "for several sets at once data=multitask",
    "experiment": "for both at once write a recipe of your own that says what both say (--config-dir)",
}
