"""Names of changes in how numbers are computed, for the configs whose numbers they change. Imports no torch.

A config says what was asked for, not how it was computed. When a fault is mended that changes numbers, whoever mends it
adds a :class:`Tag`: the configs that meet its condition get new keys, so that a run made before is not taken for
finished, and records say which tags held, so that no table mixes runs from before and after without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.config import plain, without_method
from peftlab.errors import PeftlabError
from peftlab.shipped import shipped_values

FIELD = "identity_tags"
"""Where a record says them; records of earlier versions do not have it, and none held."""


@dataclass(frozen=True)
class Tag:
    """One change that was made on purpose."""

    name: str
    """What changed and a number that counts its changes: ``dora-dropout-2``. It enters keys."""
    holds: Callable[[Mapping[str, Any]], bool]
    """Whether it changes the numbers of a plain config (``RunConfig.plain()``, ``record["config"]``), by fields that
    enter the key. Classes stand there under their stable names; records lack fields that came later than they did."""
    since: str
    """What is computed otherwise since then: one sentence for people, without the stop."""


def _reads_foreign_texts(config: Mapping[str, Any]) -> bool:
    """Whether a model's own tokenizer reads texts that may hold special tokens; those of two packages hold none."""
    backbone, data = config["backbone"], str(config["data"]["_target_"])
    own = any(backbone.get(field) is not None for field in ("name_or_path", "package", "tokenizer"))
    return own and not data.endswith((".IMDbPackaged", ".BBCNews"))


def _is_of(config: Mapping[str, Any], *families: str) -> bool:
    """Whether the backbone is of one of these families, as far as its config says."""
    backbone = config["backbone"]
    names = (backbone.get("name_or_path"), (backbone.get("architecture") or {}).get("model_type"))
    return any(family in str(name).lower() for name in names for family in families)


def _adapts_an_embedding_of_its_own_kind(config: Mapping[str, Any]) -> bool:
    """Whether a target may be a token embedding that scales its rows, or one table in several places."""
    known = str((config["backbone"].get("architecture") or {}).get("model_type", ""))
    plain = not config["backbone"]["_target_"].endswith("TransformerConfig") or (
        known and not any(family in known for family in ("gemma", "t5", "bart", "pegasus", "m2m"))
    )
    return not plain and any("emb" in entry or entry in ("shared", "wte") for entry in _targets(config["peft"]))


def _may_choose_beyond_a_budget(config: Mapping[str, Any]) -> bool:
    """Whether validation chooses among epochs of which some end before the last allocation of a budget."""
    trainer = config["trainer"]
    methods = (("peftlab.peft.adalora.AdaLoRA", "adalora"), ("peftlab.peft.dynamic_dora.DynamicDoRA", "dynamic_dora"))
    found = [fields for target, name in methods for fields in _trains(target, name, config)]
    within = trainer.get("max_steps") is None and all(
        trainer["max_epochs"] * (1 - fields.get("final_fraction", 0.5)) <= 1 for fields in found
    )
    return bool(found) and trainer.get("select", "best") == "best" and not within


def _targets(method: Any) -> Iterator[str]:
    """What a plain method, or those of a composition, name in ``targets``."""
    if isinstance(method, Mapping):
        for name, value in method.items():
            yield from map(str, value or ()) if name == "targets" else _targets(value)
    elif isinstance(method, list):
        for one in method:
            yield from _targets(one)


def _on_several_processes(config: Mapping[str, Any]) -> bool:
    trainer = config["trainer"]
    devices = trainer.get("devices", 1)
    return trainer.get("num_nodes", 1) > 1 or (isinstance(devices, int) and devices > 1)


def _puts_a_prefix_beside_images(config: Mapping[str, Any]) -> bool:
    """Whether a prefix enters a model of text and images, as far as the config says that it is one."""
    small = ("gemma3_text", "gemma-3-1b", "gemma-3-270m", "gemma-3n")
    both = _is_of(config, "gemma3", "gemma-3", "modernvbert", "ultravbert") and not _is_of(config, *small)
    return both and any(name in str(config["peft"]) for name in ("prefix_tuning", "p_tuning_v2"))


def _trains(target: str, name: str, config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The fields of each method of a class (``target``, ``name``) that a plain config trains, in compositions too."""
    peft = config["peft"]
    for method in (peft, *(peft.get("methods") or ())):
        if isinstance(method, Mapping) and (method.get("_target_") == target or method.get("name") == name):
            yield method


TAGS: tuple[Tag, ...] = (
    Tag(
        "embedding-product-1",
        _adapts_an_embedding_of_its_own_kind,
        "an update of an embedding that scales its rows (Gemma's by √d) is scaled with them, as in the merged model; "
        "one table in several places (T5's encoder and decoder) has one update in all of them; padding gets none",
    ),
    Tag(
        "text-is-text-1",
        _reads_foreign_texts,
        "special tokens that are written in a text ([SEP], </s>) are read letter by letter; others are read as before",
    ),
    Tag(
        "accumulation-1",
        lambda config: config["trainer"].get("accumulate_grad_batches", 1) > 1,
        "a step over several batches weights them by their rows; before, the last of an epoch was scaled as a full one",
    ),
    Tag(
        "head-classes-1",
        lambda config: config["backbone"].get("name_or_path") is not None,
        "the head of a checkpoint is matched to the labels by the names of its classes, and new where they are others",
    ),
    Tag(
        "full-attention-1",
        lambda config: _is_of(config, "big_bird", "bigbird"),
        "BigBird's attention is full from the start, and not only after the first batch of short texts",
    ),
    Tag(
        "last-place-1",
        lambda config: _is_of(config, "xlnet"),
        "XLNet is padded on the left, since it reads its last place, and told segments",
    ),
    Tag(
        "rows-over-ranks-1",
        _on_several_processes,
        "processes share a step by its rows, however many each has, and none is left out; before, unequal shares "
        "weighed the same, and rows fewer than the processes were left out of an epoch",
    ),
    Tag(
        "text-prefix-1",
        _puts_a_prefix_beside_images,
        "in a model of text and images a prefix stands in the attention over text, and not in that over images",
    ),
    Tag(
        "dynamic-dora-1",
        lambda config: any(_trains("peftlab.peft.dynamic_dora.DynamicDoRA", "dynamic_dora", config)),
        "dynamic-rank DoRA prunes late (b = r0 - (r0 - r)·p³), starts A and B from Kaiming's distribution and c from "
        "zero, and punishes the variance of all components until the last allocation, as its authors' code does",
    ),
    Tag(
        "budget-first-1",
        _may_choose_beyond_a_budget,
        "the epoch of AdaLoRA and dynamic_dora is chosen among those that end within their budget of components",
    ),
    Tag(
        "packing-1",
        lambda config: config["data"].get("packing") is True,
        "packed texts are shared out over so many rows that the fewest places are padded, not over the fewest rows",
    ),
    Tag(
        "loreft-1",
        lambda config: any(_trains("peftlab.peft.loreft.LoReFT", "loreft", config)),
        "LoReFT edits at most half of a prompt's tokens from either side, as its authors' code does: of an odd number "
        "the middle one is left alone",
    ),
    Tag(
        "dora-product-1",
        lambda config: any(_trains("peftlab.peft.dora.DoRA", "dora", config)),
        "DoRA rescales a layer's output in one pass: the same up to rounding, with other last bits",
    ),
    Tag(
        "fast-dropout-1",
        lambda config: config["backbone"].get("fast_dropout") is True,
        "the bytes of backbone.fast_dropout come from SFC64, seeded by torch's generator: other masks, the same rates",
    ),
)
"""All of them, oldest first.

Append only. Once it is released, a tag's name and condition are frozen, and it never leaves: else runs made since it
came get other keys. A later change of the same thing is a new tag with the next number. Where numbers stay as they are,
there is no tag.
"""


def tags_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags that hold for a plain config."""
    return tuple(tag.name for tag in TAGS if tag.holds(config))


def recorded_tags(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags that held when ``record`` was written.

    Raises:
        TypeError: if they are not as peftlab writes them.
    """
    found = record.get(FIELD, [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{FIELD} is {found!r}, and must be a list of names")
    return tuple(found)


@dataclass(frozen=True)
class Standing:
    """How the tags of a record differ from those that its config would get today; names only."""

    lacking: tuple[str, ...] = ()
    """Changes that came after the run."""
    unknown: tuple[str, ...] = ()
    """Changes that this peftlab does not know: a later one wrote the record."""
    unmet: tuple[str, ...] = ()
    """Known ones whose condition the config does not meet."""

    @property
    def words(self) -> str:
        """In a few words, for a label: ``before dora-dropout-2``; empty where nothing differs."""
        before = f"before {', '.join(self.lacking)}" if self.lacking else ""
        beyond = [*self.unknown, *self.unmet]
        return "; ".join(filter(None, (before, f"with {', '.join(beyond)}" if beyond else "")))

    def lines(self) -> list[str]:
        """What each of them means."""
        return [*map(about_lacking, self.lacking), *map(about_unknown, self.unknown), *map(about_unmet, self.unmet)]


AS_TODAY = Standing()


def about_lacking(name: str) -> str:
    """What a run lacks that was made before the change ``name``."""
    return f"computed before {name}; since then: {_since(name)}"


def about_unknown(name: str) -> str:
    """What can be said of a change that this peftlab does not know."""
    return (
        f"computed with {name}, which this peftlab does not know: a later one ran it, and what changed cannot be said"
    )


def about_unmet(name: str) -> str:
    """What can be said of a change that is recorded of a config which it does not concern."""
    return f"recorded with {name} ({_since(name)}), which does not concern its config: that is not as peftlab writes it"


def _since(name: str) -> str:
    return next(tag.since for tag in TAGS if tag.name == name)


def standing(record: Mapping[str, Any]) -> Standing:
    """How ``record`` stands to what would be computed today.

    Raises:
        TypeError: if its tags are not as peftlab writes them.
    """
    recorded = recorded_tags(record)
    if not TAGS and not recorded:  # a report asks this of 10,000 records
        return AS_TODAY
    return difference(recorded, tags_today(record.get("config", {})))


def difference(recorded: Sequence[str], today: Sequence[str]) -> Standing:
    """How ``recorded`` tags differ from ``today``'s."""
    known = {tag.name for tag in TAGS}
    return Standing(
        lacking=tuple(name for name in today if name not in recorded),
        unknown=tuple(name for name in recorded if name not in known),
        unmet=tuple(name for name in recorded if name in known and name not in today),
    )


def tags_today(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags that the config of a record would get today."""
    try:
        return tags_of(config)
    except (KeyError, TypeError, AttributeError):  # a field that came after the record
        try:
            whole = {name: plain(name, value) for name, value in without_method(dict(config)).items()}
            method = shipped_values("peft", str(config["peft"]["_target_"]))
            return () if method is None else tags_of(whole | {"peft": {**method, **config["peft"]}})
        except (PeftlabError, KeyError, TypeError, AttributeError):  # this peftlab does not accept it: nothing is run
            return ()
