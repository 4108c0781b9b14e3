"""``peftlab inspect RUN [RUN2]``: measure what a run changed of its weights, and what two runs share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError
from peftlab.records.folder import finished_run
from peftlab.report.figures.spectra import Spectrum, draw_inspection
from peftlab.report.owned import require_own_picture
from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.table import Head, plain_table

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.runs.inspection import Inspection
    from peftlab.runs.probe import Probe


def main(arguments: Sequence[str]) -> int:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(
        "peftlab inspect",
        description="Measure the weight updates of a finished run: their ranks, sizes and spectra. "
        "With a second run: how much of the first directions of the updates the two have in common.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    parser.add_argument("other", metavar="RUN2", nargs="?", help="a run with some of the same layers adapted")
    parser.add_argument("--to", metavar="FILE", help="where to write the picture; without it RUN/inspect.png")
    parser.add_argument("--directions", type=int, default=8, metavar="N", help="directions to compare, at most (8)")
    parser.add_argument(
        "--intruders", type=int, nargs="?", const=10, default=0, metavar="K",
        help="also count intruder dimensions among the first K directions of the weights (10); slow on wide layers",
    )  # fmt: skip
    parser.add_argument(
        "--probe", metavar="FILE",
        help="also measure how well a language model foretells these texts (csv, tsv, jsonl, parquet), with what was "
        "trained and without",
    )  # fmt: skip
    parser.add_argument("--probe-column", default="text", metavar="NAME", help="column of its texts (text)")
    parser.add_argument("--probe-length", type=int, default=512, metavar="N", help="tokens of a window (512)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(arguments))
    if given.directions < 1:
        raise ConfigError(f"--directions={given.directions}: it must be at least 1.")
    for name, value, least in (("--intruders", given.intruders, 0), ("--probe-length", given.probe_length, 2)):
        if value < least:
            raise ConfigError(f"{name}={value}: it must be at least {least}.")
    picture = Path(given.to) if given.to else Path(given.run) / "inspect.png"
    if picture.suffix != ".png":
        raise ConfigError(f"--to={given.to}: the picture is a PNG, so its name must end in .png.")
    if given.to:
        require_own_picture(picture)
    for run in filter(None, (given.run, given.other)):
        finished_run(run)  # a wrong path costs no import of torch
    from peftlab.runs.inspection import (
        NothingToMeasure,
        chance,
        inspect_run,
        left_out,
        mean_similarity,
        similarities,
    )

    probed = _probed(given) if given.probe else None
    how = {"directions": given.directions, "intruders": given.intruders}
    try:
        first = inspect_run(given.run, **how)
        second = inspect_run(given.other, **how) if given.other else None
    except NothingToMeasure as error:
        if probed is None:
            raise
        _print_probe(probed, as_json=given.json, beside=str(error))
        return 0
    phi = similarities(first, second) if second else {}
    if second and not phi:
        raise ConfigError(f"{given.run} and {given.other} have no layer that was changed in both.")
    mean = mean_similarity(phi).tolist() if phi else None
    draw_inspection(
        picture,
        [Spectrum(layer.name, layer.singular_values, layer.relative_size) for layer in first.layers],
        title="   beside   ".join(f"{_titled(run.run)}, peft={run.method}" for run in (first, second) if run),
        phi=mean,
        chance=chance(phi, first) if phi else None,
        runs=(_short(given.run), _short(given.other or "")),
        phi_title="directions in common: φ(i, j)" + (f", mean over {len(phi)} layers" if len(phi) > 1 else ""),
    )
    if given.json:
        beside = {} if probed is None else {"probe": probed.plain()}
        print(json.dumps(_plain(first, second, phi, mean, picture) | beside, ensure_ascii=False))
    else:
        _print(first, second, phi, picture, left_out(first, second) if second else [])
        if probed is not None:
            _print_probe(probed)
    return 0


def _probed(given: argparse.Namespace) -> Probe:
    from peftlab.data.probe_texts import ProbeTexts
    from peftlab.runs.assemble import reassemble
    from peftlab.runs.probe import probe

    folder, config, _ = finished_run(given.run)
    assembled, _ = reassemble(folder, config)
    texts = ProbeTexts(given.probe, given.probe_column, given.probe_length)
    return probe(folder, config, assembled, texts, key="--probe")


def _print_probe(probed: Probe, *, as_json: bool = False, beside: str = "") -> None:
    """The figures of the probe; ``beside`` says why there are no others."""
    if as_json:
        print(json.dumps({"probe": probed.plain(), "not_measured": beside}, ensure_ascii=False))
        return
    out = console()
    if beside:
        print_lines(out, [beside], style="yellow")
    tokens = probed.trained["tokens"]
    title = f"{probed.file}: {probed.texts:,} texts, {tokens:,} tokens foretold in windows of {probed.max_length}"
    print_lines(out, [title], style="bold")
    shown = ("loss", "perplexity", "token_accuracy")
    lines = [
        [name, *("–" if of is None or of[key] is None else f"{of[key]:.4f}" for key in shown)]
        for name, of in (("untrained", probed.untrained), ("trained", probed.trained))
    ]
    names = ("", "loss a token", *(name.replace("_", " ") for name in shown[1:]))
    print_table(out, plain_table([Head(name, number=number > 0) for number, name in enumerate(names)], lines))
    print_lines(out, [f"untrained: {probed.untrained_is}"])
    if (lost := probed.forgetting) is not None:
        print_lines(out, [f"forgetting: {lost:+.4f} nats a token"])


def _short(run: str) -> str:
    return Path(run).name[:12]


def _titled(run: str) -> str:
    return "/".join(Path(run).resolve().parts[-2:])


def _plain(
    first: Inspection, second: Inspection | None, phi: dict[str, Tensor], mean: Any, picture: Path
) -> dict[str, Any]:
    from peftlab.runs.inspection import left_out

    plain = first.plain() | {"picture": str(picture)}
    if second is not None:
        plain["other"] = second.plain()
        plain["similarity"] = {
            "mean": mean,
            "layers": {name: matrix.tolist() for name, matrix in phi.items()},
            "left_out": left_out(first, second),
        }
    return plain


def _print(
    first: Inspection, second: Inspection | None, phi: dict[str, Tensor], picture: Path, notes: Sequence[str]
) -> None:
    out = console()
    prefix = _common_prefix([layer.name for layer in first.layers])
    print_lines(out, [f"{first.run}, peft={first.method}: {len(first.layers)} weight matrices changed"], style="bold")
    if second is not None:
        print_lines(out, [f"beside {second.run}, peft={second.method}"], style="bold")
        if first.backbone_fingerprint != second.backbone_fingerprint:
            print_lines(out, ["The two did not start from the same backbone weights."], style="yellow")
        if first.seed == second.seed:
            said = f"Both have seed {first.seed}: what they share may be a random start (A of LoRA), not learned."
            print_lines(out, [said], style="yellow")
    print_lines(out, notes, style="yellow")
    if prefix:
        print_lines(out, [f"Names of layers begin with {prefix}"])
    columns = ["layer", "out × in", "effective rank", "stable rank", "σ above 1 %", "‖ΔW‖ / ‖W‖", "amplified"]
    counted = first.layers[0].intruders is not None
    columns += ["intruders"] if counted else []
    corners: dict[str, list[str]] = {}
    if phi:
        n, m = (min(matrix.shape[axis] for matrix in phi.values()) for axis in (0, 1))
        columns += list(dict.fromkeys(["φ\n(1, 1)", f"φ\n({n}, {m})"]))
        ends = [(0, 0)] if (n, m) == (1, 1) else [(0, 0), (n - 1, m - 1)]
        corners = {name: [f"{float(matrix[end]):.3f}" for end in ends] for name, matrix in phi.items()}
    lines = [
        [
            layer.name.removeprefix(prefix),
            f"{layer.shape[0]} × {layer.shape[1]}",
            f"{layer.effective_rank:.2f}",
            f"{layer.stable_rank:.2f}",
            f"{layer.above_one_percent} of {len(layer.singular_values)}",
            f"{layer.relative_size:.2%}",
            "–" if layer.amplification is None else f"{layer.amplification:.2f}",
            *([str(layer.intruders)] if counted else []),
            *(corners.get(layer.name, ["–"] * (len(columns) - 7 - counted)) if phi else []),
        ]
        for layer in first.layers
    ]
    heads = [Head(name, number=name != "layer", whole=name == "layer", optional=name in OPTIONAL) for name in columns]
    print_table(out, plain_table(heads, lines), elsewhere="--json")
    print_lines(out, [MEANINGS, *([INTRUDERS] if counted else []), *([SIMILARITY] if phi else []), str(picture)])


OPTIONAL = ("out × in", "σ above 1 %", "amplified")
"""Columns that give way, the last first, where there is not room for all."""
MEANINGS = (
    "effective rank: exp of the entropy of the singular values' shares; stable rank: ‖ΔW‖_F² / ‖ΔW‖₂²; "
    "σ above 1 %: singular values above 1 % of the first; amplified: ‖ΔW‖ / ‖UᵀWV‖ over those (LoRA paper, 7.3)."
)
INTRUDERS = (
    "intruders: of the first left-singular vectors of W + ΔW, those whose cosine with each of W's is below 0.5 "
    "(arXiv:2410.21228)."
)
SIMILARITY = (
    "φ(i, j): share of the first i and j right-singular directions in common, 0 … 1 (LoRA paper, eq. 4); "
    "of random directions it is max(i, j) / in on average."
)


def _common_prefix(names: list[str]) -> str:
    """The dotted beginning that all names share: ``bert.encoder.layer.``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])
