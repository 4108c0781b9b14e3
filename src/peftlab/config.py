"""A run's config: its typed schema, and checking it before anything heavier than torch is imported.

Values come from ``conf/`` (and ``--config-dir``), composed by Hydra; the schema is the dataclasses that
each group's ``_target_`` names. A mistake is one :class:`~peftlab.errors.ConfigError` that names the key,
the file it stands in, what is allowed and the nearest name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import Field

from peftlab.backbones.config import BackboneConfig
from peftlab.class_names import stable_name
from peftlab.data.base import DataSet
from peftlab.data.probe_texts import ProbeTexts
from peftlab.errors import ConfigError, first_line, nearest
from peftlab.fields import NAME_PATTERN, NonNegativeInt, added, bookkeeping, run_folder
from peftlab.objectives.base import Learned, Objective
from peftlab.peft.base import PEFTStrategy
from peftlab.reading import read_yaml
from peftlab.schema import BadValue, UnknownKey, check_keys, import_class, validate
from peftlab.training.config import LoggerConfig, OptimizerConfig, ScheduleConfig, TrainerConfig

GROUPS: dict[str, type] = {
    "data": DataSet,
    "backbone": BackboneConfig,
    "peft": PEFTStrategy,
    "optim": OptimizerConfig,
    "schedule": ScheduleConfig,
    "logger": LoggerConfig,
}
"""Groups whose ``_target_`` names the dataclass, and what that dataclass must be."""

NO_PART_OF_A_RUN = ("hydra", "experiment", "debug")
"""Top-level keys of what Hydra composes that are its own, or only select files."""

WITHOUT_DEFAULT = {
    "backbone.name_or_path": "hub id, such as FacebookAI/roberta-base, or a folder",
    "data.id": "hub id, such as stanfordnlp/imdb, or a folder that save_to_disk has written",
}
"""Keys that a file of ``conf/`` leaves open, and what they take."""


@dataclass(kw_only=True)
class RunConfig:
    """Everything a run is made of; each group is the validated dataclass its ``_target_`` names."""

    name: str = field(metadata={"bookkeeping": True})
    """The experiment's name: runs of one name share the folder ``<output_dir>/<name>``."""
    seed: NonNegativeInt
    """Seeds initialisation, data order and dropout, each through a stream of its own."""
    output_dir: str = bookkeeping("outputs")
    """Where runs are left, each in ``<output_dir>/<name>/<key>``."""
    force: bool = bookkeeping(False)
    """Run again even if the result is there already; the old result is replaced when the new one is ready."""
    measure_forgetting: bool = False
    """After the test, also test on the task of the run in ``backbone.from_run``, with that run's head put back."""
    continue_from: str | None = run_folder()
    """Folder of a finished run of the same config to go on with, for more epochs: from its last weights, optimizer
    states and step, by the schedule of the new length. That run must have ``trainer.keep_checkpoints=true``."""
    probe: dict[str, Any] | None = added(None)
    """General texts that a language model foretells after the test, with what was trained and without: {file: FILE,
    column: text, max_length: 512}; the difference is what it has forgotten of them. null: none."""
    data: DataSet
    backbone: BackboneConfig
    peft: PEFTStrategy
    optim: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    logger: LoggerConfig = field(metadata={"bookkeeping": True})

    @property
    def trains_head(self) -> bool:
        """Whether the head trains: what ``backbone.train_head`` or, where that is null, the objective says."""
        return self.data.what_is_learned().trains_head(self.backbone.train_head)

    def plain(self) -> dict[str, Any]:
        """Plain containers, ``_target_`` included: what config.yaml and the record hold."""
        return {name: plain(name, getattr(self, name)) for name in self.__dataclass_fields__}


def plain(name: str, value: Any) -> Any:
    """The field ``name`` of :class:`RunConfig` as plain containers."""
    if name in GROUPS:
        return {"_target_": stable_name(type(value)), **asdict(value)}
    return asdict(value) if name == "trainer" else value


@dataclass(kw_only=True)
class _TopLevel:
    """The fields of :class:`RunConfig` that are not groups."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=120)]
    seed: NonNegativeInt
    output_dir: str = "outputs"
    force: bool = False
    measure_forgetting: bool = False
    continue_from: str | None = None
    probe: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a probe that is said wrongly."""
        if self.probe is not None:
            ProbeTexts.of(self.probe)


def from_plain(values: dict[str, Any]) -> RunConfig:
    """Check plain ``values`` against the schema.

    Args:
        values: what :meth:`RunConfig.plain` returns, or a composed config as containers.

    Raises:
        ConfigError: naming every key that does not fit.
    """
    parts = without_method(values)
    method = validate_group("peft", values.get("peft"), PEFTStrategy).settled(parts["backbone"].kind)
    method.fit_tasks(max(len(parts["data"].task_names()), 1))
    if method.acts_on_prompts() and not parts["data"].tells_prompts():
        _refuse_without_prompts(method)
    if parts["probe"] is not None and method.acts_on_prompts():
        said = (
            f"probe: peft={method.name} edits prompts and leaves what a model says alone; a plain text has no prompt, "
            "so that nothing would differ. Set probe=null."
        )
        raise BadValue([("probe", said)])
    if parts["trainer"].strategy == "fsdp":
        _require_shardable(parts, method)
    return RunConfig(peft=method, **parts)


def without_method(values: dict[str, Any]) -> dict[str, Any]:
    """Field of :class:`RunConfig` → what ``values`` say of it, checked; all fields but ``peft``.

    Imports no torch, as long as the classes are peftlab's own: only methods have theirs beside their code.

    Raises:
        ConfigError: naming every key that does not fit.
    """
    check_keys(values, RunConfig, "")
    top = {name: value for name, value in values.items() if name not in GROUPS and name != "trainer"}
    parts: dict[str, Any] = asdict(validate(top, _TopLevel, ""))
    for group, base in GROUPS.items():
        if group != "peft":
            parts[group] = validate_group(group, values.get(group), base)
    parts["trainer"] = validate(_as_mapping("trainer", values.get("trainer")), TrainerConfig, "trainer")
    learned = parts["data"].what_is_learned()
    _fit_to_objective(parts["trainer"], learned)
    _require_one_step_size(parts["data"], parts["trainer"])
    _require_one_program(parts["backbone"], parts["trainer"])
    _require_rows_for(parts["data"])
    _require_rows_as_they_are(parts["backbone"], parts["data"], parts["trainer"])
    _decide_head(parts["backbone"], learned)
    if parts["measure_forgetting"] and parts["backbone"].from_run is None:
        raise ConfigError(
            "measure_forgetting=true needs backbone.from_run=<run folder>, the run whose task may be forgotten."
        )
    if parts["probe"] is not None and learned.head != "own":
        said = (
            f"probe needs a language model, and this run learns {learned.about}. Set probe=null, or use "
            "data=instructions, multiple_choice or text."
        )
        raise BadValue([("probe", said)])
    return parts


def _fit_to_objective(trainer: TrainerConfig, objective: Learned) -> None:
    """Fill in what the objective decides, before the config has a key; refuse what it does not know."""
    known = objective.monitors()
    if trainer.monitor is None:
        if objective.tasks() and not objective.figures:
            raise BadValue([("trainer.monitor", _no_mean(objective))])
        trainer.monitor = objective.selects
    elif trainer.monitor not in known:
        said = f"trainer.monitor='{trainer.monitor}' is not allowed: it must be one of {', '.join(known)}, or null"
        about = "" if objective.name == "classification" else f" ({objective.name})"
        raise BadValue([("trainer.monitor", f"{said}{about}.{nearest(trainer.monitor, known)}")])
    if trainer.label_smoothing and not objective.smooths_labels:
        said = (
            f"trainer.label_smoothing={trainer.label_smoothing:g} has no meaning for {objective.about}. Leave it at 0."
        )
        raise BadValue([("trainer.label_smoothing", said)])


def _require_one_step_size(data: DataSet, trainer: TrainerConfig) -> None:
    """Refuse two answers to how many batches a step has."""
    if data.global_batch_size is not None and trainer.accumulate_grad_batches != 1:
        said = (
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} is not allowed beside "
            f"data.global_batch_size={data.global_batch_size}, which says how many texts a step has and is cut into "
            "batches of at most data.batch_size. Leave one of them out."
        )
        raise BadValue([("trainer.accumulate_grad_batches", said)])


def _require_one_program(backbone: BackboneConfig, trainer: TrainerConfig) -> None:
    """Refuse blocks that are computed twice, or passed over, inside of what is compiled as a whole."""
    for field_name in ("gradient_checkpointing", "cache_frozen"):
        if trainer.compile and getattr(backbone, field_name, False):
            said = (
                f"backbone.{field_name}=true is not allowed beside trainer.compile=true, which makes one program of "
                "all blocks. Set one of them to false."
            )
            raise BadValue([(f"backbone.{field_name}", said)])


def _require_rows_for(data: DataSet) -> None:
    """Refuse an objective whose rows the data set does not make."""
    makes_tokens = type(data).row_encoder is not DataSet.row_encoder
    learned = data.what_is_learned()  # tasks of several have labels, which the mixture sees to
    learns_tokens = isinstance(learned, Objective) and learned.learns_tokens
    if learns_tokens and not makes_tokens:
        said = (
            f"data.objective={learned.name} learns the tokens of a text, and this data set has labelled rows. Use "
            "data=instructions (data.template makes prompts and answers of labelled rows), or data=text."
        )
        raise BadValue([("data.objective", said)])
    own = str(getattr(type(data), "objective", ""))
    if makes_tokens and (learned.head == "new" or (learns_tokens and learned.name != own)):
        what = "learns other rows than this data set makes" if learns_tokens else "reads labels; this data set has none"
        said = f"data.objective={learned.name} {what}. Leave it at {own}."
        raise BadValue([("data.objective", said)])


def _require_rows_as_they_are(backbone: BackboneConfig, data: DataSet, trainer: TrainerConfig) -> None:
    """Refuse packed rows where steps are recorded, which repeats no look at positions, or states of rows are kept."""
    if data.packs() and getattr(backbone, "cache_frozen", False):
        said = (
            "backbone.cache_frozen=true is not allowed beside data.packing=true: what is kept of a row is kept of it "
            "alone, in its own place. Leave one of them out."
        )
        raise BadValue([("backbone.cache_frozen", said)])
    if data.packs() and (trainer.cuda_graphs or trainer.compile):
        name = "cuda_graphs" if trainer.cuda_graphs else "compile"
        said = (
            f"trainer.{name}=true is not allowed beside data.packing=true: texts in a row are kept apart by a look at "
            "their positions, which no recorded step repeats. Leave one of them out."
        )
        raise BadValue([(f"trainer.{name}", said)])


def _refuse_without_prompts(method: PEFTStrategy) -> NoReturn:
    said = (
        f"peft={method.name} works on prompts, and leaves what a model says alone: here every token is learned, so "
        "that there is none. Use data=instructions with data.loss_on=response, or another method (peft=lora)."
    )
    raise BadValue([("peft", said)])


def _require_shardable(parts: Mapping[str, Any], method: PEFTStrategy) -> None:
    """Refuse what does not work where each process has a part of every frozen weight."""
    ways = "Choose trainer.strategy=ddp"
    wrong: list[tuple[str, str]] = []
    if not method.supports.sharded:
        said = f"peft={method.name} trains the backbone's weights, and fsdp cuts only those that are frozen"
        wrong.append(("peft", f"trainer.strategy=fsdp: {said}. {ways}, or a method that adds weights (peft=lora)."))
    if parts["backbone"].quantize == "int8":
        said = "backbone.quantize=int8 keeps scales in its weights that are lost when these are cut"
        wrong.append(("backbone.quantize", f"trainer.strategy=fsdp: {said}. {ways}, or backbone.quantize=nf4."))
    if getattr(parts["backbone"], "cache_frozen", False):
        said = "backbone.cache_frozen=true computes the frozen blocks before they are cut"
        wrong.append(("backbone.cache_frozen", f"trainer.strategy=fsdp: {said}. {ways}, or cache_frozen=false."))
    if parts["measure_forgetting"]:
        said = "measure_forgetting=true tests in one process, which has a part of the model only"
        wrong.append(("measure_forgetting", f"trainer.strategy=fsdp: {said}. {ways}, or measure_forgetting=false."))
    if parts["probe"] is not None:
        said = "probe measures in one process, which has a part of the model only"
        wrong.append(("probe", f"trainer.strategy=fsdp: {said}. {ways}, or probe=null."))
    if parts["data"].generation() is not None:
        said = "data.generate writes answers in one process, which has a part of the model only"
        wrong.append(("data.generate", f"trainer.strategy=fsdp: {said}. {ways}, or data.generate=null."))
    if parts["trainer"].accelerator == "mps":
        said = "trainer.accelerator=mps has no collectives"
        wrong.append(("trainer.accelerator", f"trainer.strategy=fsdp: {said}. Set trainer.strategy=auto."))
    if wrong:
        raise BadValue(wrong)


def _no_mean(mixture: Learned) -> str:
    """Why there is no figure that selects for tasks whose figures better in opposite ways."""
    figures = {task: one.figure(one.selects) for task, one in mixture.tasks().items()}
    ways = {"max": "the more the better", "min": "the less the better"}
    said = ", ".join(f"{task}/{figure.name} ({ways[figure.better]})" for task, figure in figures.items())
    return (
        f"trainer.monitor=null is not allowed: the tasks' figures have no mean, which would select: {said}. Choose one "
        f"of {', '.join(mixture.monitors())}."
    )


def _decide_head(backbone: BackboneConfig, objective: Learned) -> None:
    """Fill in whether the head trains, before the config has a key."""
    try:
        backbone.train_head = objective.trains_head(backbone.train_head)
    except ValueError as error:
        said = f"backbone.train_head={str(backbone.train_head).lower()} is not allowed: {error} Set it to null."
        raise BadValue([("backbone.train_head", said)]) from None


def validate_group(group: str, given: Any, base: type) -> Any:
    """The instance of ``base`` that one group's values describe."""
    given = _as_mapping(group, given)
    target = given.get("_target_")
    key = f"{group}._target_"
    if not isinstance(target, str):
        raise ConfigError(
            f"{key} is missing: it names the dataclass of the group, for example one of conf/{group}/*.yaml."
        )
    cls = import_class(target, key)
    if not issubclass(cls, base):
        raise ConfigError(f"{key}={target}: it must be a {base.__module__}.{base.__qualname__}, which this is not.")
    return validate(given, cls, group)


def _as_mapping(group: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"'{group}' must be chosen (for example {group}=<file in conf/{group}>), got {given!r}.")
    return given


def check(composed: DictConfig) -> RunConfig:
    """Resolve and validate what Hydra composed, naming the file a mistake stands in."""
    values = resolved(composed)
    try:
        return from_plain(values)
    except UnknownKey as error:
        raise ConfigError(f"{error}{_where(error.key)}") from error
    except BadValue as error:
        lines = str(error).splitlines()
        raise ConfigError(
            "\n".join(line + _where(key) for line, key in zip(lines, error.keys, strict=True))
            if len(lines) == len(error.keys)
            else str(error)
        ) from error


def resolved(composed: DictConfig) -> dict[str, Any]:
    """The run's part of what Hydra composed, as plain containers that are not checked yet.

    Raises:
        ConfigError: for an interpolation that leads nowhere.
    """
    kept = [str(key) for key in composed if key not in NO_PART_OF_A_RUN]
    if len(kept) < len(composed):
        composed = OmegaConf.masked_copy(composed, kept)
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        if isinstance(error, MissingMandatoryValue):
            wanted = WITHOUT_DEFAULT.get(key, "a value")
            raise ConfigError(f"{key} has no default: type {key}=<{wanted}>{_where(key)}") from error
        raise ConfigError(f"{key or 'config'}: {first_line(error)}{_where(key)}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _where(key: str) -> str:
    """`` (in <file>)`` or `` (on the command line)`` for the place that set ``key``, if it can be told."""
    if not key or not HydraConfig.initialized():
        return ""
    if found := _where_exactly(key):
        return found
    around = re.sub(r"(\[\d+\]|\.[^.\[]+)$", "", key)  # an entry of a list or mapping is set with all of it
    return _where(around) if "." in around and around != key else ""


def _where_exactly(key: str) -> str:
    hydra = HydraConfig.get()
    # unresolved: the mistake may be an interpolation in one of them
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    for override in reversed(cast(list[str], overrides)):
        if re.match(rf"[+~]*{re.escape(key)}(@|=|$|\.)", override):
            return f" (on the command line: {override})"
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    files = [f"{group}/{option}.yaml" for group, option in hydra.runtime.choices.items() if option]
    files.append(f"{hydra.job.config_name}.yaml")
    group, _, inner = key.partition(".")
    # Other files (an experiment) are merged over the group's own, so they are asked first.
    for name in sorted(files, key=lambda name: name.startswith(f"{group}/")):
        path_in_file = inner if name.startswith(f"{group}/") else key
        for folder in folders:
            if _has(_read_yaml(folder / name), path_in_file.split(".")):
                return f" (in {folder / name})"
    return ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _has(content: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
