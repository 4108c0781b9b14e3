"""Any layer-wise method of Hugging Face peft (github.com/huggingface/peft), by the names of its own config.

``peft_type`` says which (OFT, LOHA, LOKR, HRA, BOFT, FOURIERFT, …), ``options`` are the fields of that type's config.
The default is OFT, Orthogonal Fine-Tuning (Qiu et al. 2023, arXiv:2306.07280; Liu et al. 2023, arXiv:2311.06243),

    h = W R x        R block-diagonal and orthogonal, R = (I + Q)(I − Q)⁻¹, Q skew-symmetric

whose Q starts from zero. The equations of the other types are in the papers that HF peft's documentation names.

The layers are HF peft's own code, put into the model in place; everything else is as with the other methods. Two things
are added. The head is left alone whatever ``target_modules`` says, and every name in ``target_modules`` must
match something. HF peft draws from torch's global generator: here it is seeded from the run's seed for the time of
the injection, and put back.

Refused are types that cannot work in this way: those without layers of their own (prompts), those that need a call at
every step or share state between layers. For several of them peftlab has a method of its own, which the message names.
Names of layers are HF peft's (``query``, ``c_attn``, regexes, ``all-linear``), not peftlab's roles.

Trainable: the formulas in :meth:`HFPeft.closed_form`, of OFT, LORA, LOHA and FOURIERFT; other types have none here.

This file imports neither torch nor peft, and is imported itself when a config is checked.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftlab.backbones.base import Target
from peftlab.backbones.quiet import quiet_bitsandbytes
from peftlab.backbones.roles import adaptable_modules, output_layer
from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.hf_layers import HFPeftAdapter, adapter_in_float32, in_type_of_autocast, reads_packed, tuner_layers
from peftlab.peft.hf_options import hf_types, option_fits, option_types, package_folder
from peftlab.peft.names import clean_name
from peftlab.peft.skeleton import skeleton
from peftlab.peft.surgery import is_quantized, linear_features
from peftlab.seeding import derive_seed

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone
    from peftlab.peft.adapter import Adapter

NATIVE: Mapping[str, str] = MappingProxyType(
    {
        "PROMPT_TUNING": "peft=prompt_tuning",
        "MULTITASK_PROMPT_TUNING": "peft=multitask_prompt",
        "P_TUNING": "peft=p_tuning",
        "PREFIX_TUNING": "peft=prefix_tuning",
        "ADALORA": "peft=adalora",
        "VERA": "peft=vera",
    }
)
"""Types that cannot be used through this method → the method of peftlab that does the same."""

NOT_OPTIONS = frozenset(
    {
        "peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "modules_to_save",
    }
)  # fmt: skip
"""Fields of HF peft's configs that describe its files, or the head, which ``backbone.train_head`` decides about."""

COUNTED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "OFT": frozenset({"oft_block_size"}),
        "LORA": frozenset({"r", "lora_alpha"}),
        "LOHA": frozenset({"r", "alpha"}),
        "FOURIERFT": frozenset({"n_frequency", "scaling"}),
    }
)
"""Types with a formula of what trains → the options under which it holds, beside target_modules."""


@dataclass(kw_only=True)
class HFPeft(PEFTStrategy, name="hf_peft"):
    """Any layer-wise method of Hugging Face peft, OFT by default:  h = W R x with R orthogonal."""

    supports = Supports(mergeable=True, hf_peft="its peft_type")
    count = "by type; OFT: in · (block − 1) / 2 a layer"

    peft_type: str = "OFT"
    """HF peft's name of the method, in capitals."""
    options: dict[str, Any] = field(default_factory=lambda: {"oft_block_size": 32, "target_modules": "all-linear"})
    """Fields of the method's config in HF peft, those that differ from its defaults."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a missing package, an unknown type, or a wrong option; imports nothing heavy."""
        package = package_folder()
        known = hf_types(package)
        if known and self.peft_type not in known:
            close = nearest(self.peft_type.upper(), known)
            raise ConfigError(
                f"peft.peft_type={self.peft_type}: HF peft has no such type.{close} It has: {listed(known, limit=100)}."
            )
        if self.peft_type in NATIVE:
            raise ConfigError(
                f"peft.peft_type={self.peft_type} does not work by layers that can be put into a model one by one. "
                f"Use {NATIVE[self.peft_type]}, peftlab's own."
            )
        if "modules_to_save" in self.options:
            raise ConfigError("peft.options.modules_to_save: the head trains by backbone.train_head. Leave this out.")
        annotations = option_types(package, self.peft_type)
        if annotations is None:  # HF peft keeps it elsewhere, and inject checks the names
            return
        self._require_known(annotations)
        for name, value in self.options.items():
            if not option_fits(annotations[name], value):
                raise ConfigError(
                    f"peft.options.{name}={value!r} is not allowed: HF peft's {self.peft_type} has this option as "
                    f"{annotations[name]}. Give it so."
                )

    def _require_known(self, fields: Collection[str]) -> None:
        allowed = {*fields} - NOT_OPTIONS
        for name in self.options:
            if name not in allowed:
                of_default = name == "oft_block_size" and self.peft_type != "OFT"
                way_out = f" It is there for OFT: leave it out by '~peft.options.{name}'." if of_default else ""
                raise ConfigError(
                    f"peft.options.{name}: {self.peft_type} of HF peft has no such option.{nearest(name, allowed)}"
                    f"{way_out} It has: {listed(allowed)}."
                )

    def select(self, backbone: Backbone) -> Selection:
        """Where HF peft puts its layers in a skeleton of the backbone: it decides its own places."""

        try:
            names, trains = self._tried(skeleton(backbone))
        except PeftlabError as error:
            if not isinstance(error.__cause__, RuntimeError):  # of which NotImplementedError is one
                raise
            # Some starts (SHIRA's, PiSSA's) are computed from the weights.
            names, trains = self._tried(copy.deepcopy(backbone, {id(backbone.tokenizer): backbone.tokenizer}))
        if foreign := set(names) - {name for name, _ in backbone.model.named_modules()}:
            raise PeftlabError(
                f"peft.options: HF peft would put a layer at '{min(foreign)}', which this {backbone.architecture} does "
                "not have (layer_replication does so): a method adapts the layers that there are. Leave that out."
            )
        targets = [Target(name, backbone.model.get_submodule(name), role=None) for name in names]
        return Selection(backbone, targets=targets, trains=trains, when="before others")

    def _tried(self, twin: Backbone) -> tuple[list[str], list[str]]:
        """Let HF peft change ``twin``; names, in the clean model, of the layers it adapts and of the tensors it lets
        train."""

        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        head = {name for name, _ in twin.head_parameters()}  # HF peft's bias="all" means the head's bias as well
        own = {id(parameter): name for name, parameter in twin.model.named_parameters() if name not in head}
        layers = self._injected(twin, seed=0)
        trains = [own[id(p)] for p in twin.model.parameters() if p.requires_grad and id(p) in own]
        return [clean_name(twin.model, name) for name in layers], trains

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Let HF peft put its layers in place."""
        import torch

        backbone = selection.backbone
        layers = self._injected(backbone, seed=seed)
        adapter = HFPeftAdapter(self, backbone, layers)
        adapter.train_own(selection.trains, in_float32=False)  # HF peft leaves biases frozen where it was before
        for layer in layers.values():
            adapter_in_float32(layer)
            if not isinstance(layer.base_layer, torch.nn.Embedding):
                adapter.hold(layer.register_forward_hook(in_type_of_autocast))
        return adapter

    def _injected(self, backbone: Backbone, *, seed: int) -> dict[str, Any]:
        """Let HF peft put its layers into ``backbone``; return those that are new, by name, checked."""
        import torch

        quiet_bitsandbytes()
        import peft

        config = self._config(backbone)
        before = {id(layer) for layer in tuner_layers(backbone.model).values()}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Only the CPU's generator: torch.manual_seed would reseed the accelerators' as well.
            torch.default_generator.manual_seed(derive_seed(seed, "adapter", "hf_peft"))
            warnings.filterwarnings("ignore", "Invalid `")  # and changes what was asked for; _check refuses that
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of another part of a composition
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # and is then set to what it must be
            try:
                peft.inject_adapter_in_model(config, backbone.model)
            except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
                raise self._refused(error) from error
        layers = {name: layer for name, layer in tuner_layers(backbone.model).items() if id(layer) not in before}
        self._check(backbone, layers)
        return layers

    def _config(self, backbone: Backbone) -> Any:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[self.peft_type]  # type: ignore[index]
        tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[self.peft_type]  # type: ignore[index]
        self._require_possible(tuner)
        names = {one.name for one in dataclasses.fields(config_class) if one.init}
        self._require_known(names)
        try:
            config = config_class(**self.options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise self._refused(error) from error
        if "exclude_modules" in names:
            config.exclude_modules = _excluded(config.exclude_modules, backbone)
        return config

    def _require_possible(self, tuner: Any) -> None:
        reason = ""
        if getattr(tuner, "uses_shared_state", False):
            reason = "it shares state between its layers"
        elif hasattr(tuner, "update_and_allocate"):
            reason = "it must be called at every step of the training"
        elif self.peft_type == "POLY":
            reason = "it must be told the task of every text"
        if reason:
            raise PeftlabError(f"peft.peft_type={self.peft_type} cannot be used through peft=hf_peft: {reason}.")

    def _refused(self, error: Exception) -> PeftlabError:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        said = said.strip() if said.strip().endswith((".", "!", "?")) else f"{said.strip()}."
        return PeftlabError(f"peft=hf_peft, {self.peft_type}: HF peft refuses this: {said} Change peft.options.")

    def _check(self, backbone: Backbone, layers: Mapping[str, Any]) -> None:
        """Raise for what HF peft lets pass without a word."""

        if not layers:
            raise PeftlabError(f"peft.peft_type={self.peft_type} has put no layer of its own into the model.")
        head = backbone.head_modules()
        for name in layers:
            if any(name == top or name.startswith(f"{top}.") for top in head):
                raise PeftlabError(
                    f"peft.options.target_modules reaches the head ('{name}'), which trains by itself. Name the "
                    "layers of the trunk only."
                )
        for layer in layers.values():
            # Other layers would read packed weights as if they were a matrix.
            if is_quantized(layer.base_layer) and not reads_packed(layer):
                raise PeftlabError(
                    f"peft.peft_type={self.peft_type}: HF peft has no layers of this type for weights in "
                    f"{backbone.provenance.get('quantize')}. Set backbone.quantize=null, or choose another type "
                    "(OFT has them) or method (peft=lora)."
                )
        if self.peft_type == "OFT":
            self._require_whole_blocks({n: int(x.in_features) for n, x in layers.items() if hasattr(x, "in_features")})
        wanted = self.options.get("target_modules")
        for entry in wanted if isinstance(wanted, list) else []:
            if not any(name == entry or name.endswith(f".{entry}") for name in layers):
                endings = {name.rpartition(".")[2] for name, _ in backbone.model.named_modules()}
                raise PeftlabError(
                    f"peft.options.target_modules: '{entry}' matches none of the layers.{nearest(str(entry), endings)} "
                    "Names are those of the model (regexes: as text, not as a list), not peftlab's roles."
                )

    def _require_whole_blocks(self, inputs: Mapping[str, int]) -> None:
        """Raise if OFT's blocks do not divide the inputs of a layer: HF peft would take another size there."""
        key = "r" if self.options.get("r") else "oft_block_size"
        given = int(self.options.get(key, 32))
        for name, features in inputs.items():
            if features % given:
                common = math.gcd(*inputs.values())
                sizes = [size for size in range(1, common + 1) if common % size == 0]
                near = [*[size for size in sizes if size < given][-1:], *[size for size in sizes if size > given][:1]]
                raise PeftlabError(
                    f"peft.options.{key}={given} does not divide the {features} inputs of '{name}'. "
                    f"Give one that divides those of every layer: the nearest are {' and '.join(map(str, near))}."
                )

    def closed_form(self, backbone: Backbone) -> int | None:
        """The sum over the layers that ``target_modules`` means; None for a type or option without formula here.

        OFT in / b blocks of b · (b − 1) / 2, LORA r · (in + out), LOHA 2 r · (in + out), FOURIERFT n a layer.
        """

        wanted = self.options.get("target_modules")  # without it HF peft has a choice of its own for each model
        if wanted is None or not self.options.keys() <= {"target_modules", *COUNTED.get(self.peft_type, ())}:
            return None
        linear = {
            name: linear_features(module)
            for name, module in adaptable_modules(backbone).items()
            if not hasattr(module, "num_embeddings") and _meant(wanted, name, output_layer(backbone.model))
        }
        shapes = linear.values()
        match self.peft_type:
            case "OFT":
                self._require_whole_blocks({name: in_features for name, (in_features, _) in linear.items()})
                block = int(self.options.get("oft_block_size", 32))
                return sum(in_features // block * (block * (block - 1) // 2) for in_features, _ in shapes)
            case "LORA" | "LOHA":
                pairs = 1 if self.peft_type == "LORA" else 2
                return pairs * int(self.options.get("r", 8)) * sum(map(sum, shapes))
            case "FOURIERFT":
                return int(self.options.get("n_frequency", 1000)) * len(shapes)
        return None


def _excluded(given: Any, backbone: Backbone) -> str:
    """A regex for what was excluded already, and for every module of the head."""
    head = [
        f"{top}.{inner}" if inner else top
        for top in backbone.head_modules()
        for inner, _ in backbone.model.get_submodule(top).named_modules()
    ]
    patterns = [re.escape(name) for name in head]
    if isinstance(given, str):
        patterns.append(f"(?:{given})")
    elif given:
        patterns += [rf"(?:.*\.)?{re.escape(name)}" for name in sorted(given)]
    return "|".join(patterns)


def _meant(wanted: str | list[str], name: str, output: str | None) -> bool:
    """Whether HF peft's ``target_modules`` means the linear layer ``name`` of a model whose last one is ``output``."""
    if isinstance(wanted, str):
        return name != output if wanted.lower() == "all-linear" else re.fullmatch(wanted, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in wanted)
