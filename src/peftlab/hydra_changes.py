"""What Hydra does otherwise here: two methods of its own, exchanged once in a process.

- ``backbone.architecture`` holds settings of a model type of transformers, which its file cannot list. An override may
  add any that the type has: ``backbone.architecture.pad_token_id=3``. A mapping with settings that are not there,
  ``backbone.architecture={model_type: gpt2, n_embd: 64}``, stands for the whole; else it changes what it names.
- A YAML file is looked at before it is read: brackets and aliases without end are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from peftlab.errors import ConfigError
from peftlab.reading import Unreadable, require_harmless

OPEN = "backbone.architecture"


def exchange() -> None:
    """Let Hydra of this process do as the module says; again is nothing."""
    if ConfigLoaderImpl._apply_overrides_to_config is not _apply:
        ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_apply)  # type: ignore[method-assign]
        ConfigRepository.load_config = _load  # type: ignore[method-assign]


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
            break
    return _plainly_load(self, config_path)


def _require_harmless(file: Path) -> None:
    try:
        require_harmless(file)
    except (OSError, Unreadable) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError:
        pass  # Hydra says where the mistake is
