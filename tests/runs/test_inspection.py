"""Weight updates measured: closed forms of ranks and similarities, every kind of method, runs end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.dora import DoRA
from peftlab.peft.dynamic_dora import DynamicDoRA
from peftlab.peft.ia3 import IA3
from peftlab.peft.lora import LoRA
from peftlab.peft.surgery import weight_matrix
from peftlab.peft.vera import VeRA
from peftlab.peft.weight_update import WeightUpdate
from peftlab.runs.inspection import intruder_dimensions, measure, similarity
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import tiny


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("factored", [True, False])
def test_measures_of_known_singular_values(factored: bool) -> None:
    U, V = orthonormal(20, 4, 1), orthonormal(12, 4, 2)
    S = torch.tensor([4.0, 2.0, 2.0, 0.01], dtype=torch.float64)
    left, right = U * S, V.T
    update = WeightUpdate("x", 3 * U @ V.T, (left, right) if factored else left @ right)
    layer, directions = measure(update, directions=8)
    shares = [value / 8.01 for value in (4, 2, 2, 0.01)]
    assert layer.singular_values[:4] == pytest.approx([4, 2, 2, 0.01])
    assert layer.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert layer.stable_rank == pytest.approx((16 + 4 + 4 + 0.0001) / 16)
    assert layer.above_one_percent == 3  # 0.01 is 0.25 % of 4
    assert layer.relative_size == pytest.approx(math.sqrt(24.0001) / 6)
    assert layer.amplification == pytest.approx(math.sqrt(24.0001) / math.sqrt(27))  # 3 · I through three directions
    assert layer.shape == (20, 12)
    assert directions.shape == (4, 12)
    assert (directions[0] @ V[:, 0]).abs() == pytest.approx(1.0)


def test_more_factors_than_the_matrix_has_rows() -> None:
    left, right = torch.randn(5, 30, dtype=torch.float64), torch.randn(30, 7, dtype=torch.float64)
    U, S, Vh = WeightUpdate("x", torch.zeros(5, 7), (left, right)).svd()
    torch.testing.assert_close((U * S) @ Vh, left @ right)
    torch.testing.assert_close(S, torch.linalg.svdvals(left @ right))


def test_nothing_changed() -> None:
    layer, directions = measure(WeightUpdate("x", torch.eye(3), torch.zeros(3, 3)), directions=8)
    assert (layer.effective_rank, layer.stable_rank, layer.above_one_percent) == (0, 0, 0)
    assert layer.amplification is None
    assert directions.shape == (0, 3)


def test_intruder_dimensions_counted_by_hand() -> None:
    """W has the left-singular vectors e1 … e4 of six, with 5, 4, 3 and 2; the update turns the last of them away.

    W + ΔW has 2 e4 + s e6 in place of 2 e4, whose cosine with e4 is 2 / √(4 + s²), and which is first where s is large.
    """
    weight = torch.zeros(6, 4, dtype=torch.float64)
    weight[range(4), range(4)] = torch.tensor([5.0, 4, 3, 2], dtype=torch.float64)
    for s, first, intruders in ((20.0, 1, 1), (20.0, 4, 1), (4.0, 1, 0), (4.0, 4, 1), (3.0, 4, 0)):
        left, right = torch.zeros(6, 1, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
        left[5], right[0, 3] = s, 1.0
        for update in ((left, right), left @ right):  # 2 / √20 = 0.447, 2 / √13 = 0.555
            assert intruder_dimensions(WeightUpdate("x", weight, update), first) == intruders, (s, first)
    nothing = WeightUpdate("x", weight, torch.zeros(6, 4))
    assert intruder_dimensions(nothing, 10) == 0


def test_similarity_of_equal_orthogonal_and_tilted_directions() -> None:
    V = orthonormal(10, 6, 3).T
    assert similarity(V[:4], V[:4]) == pytest.approx(torch.ones(4, 4).numpy())
    assert similarity(V[:3], V[3:]) == pytest.approx(torch.zeros(3, 3).numpy())
    # the second space holds the first one's second direction, and one turned by 30 degrees from its first
    tilted = torch.stack([V[1], math.cos(math.pi / 6) * V[0] + math.sin(math.pi / 6) * V[5]])
    assert similarity(V[:2], tilted) == pytest.approx(torch.tensor([[0.0, 0.75], [1.0, 1.75 / 2]]).numpy())


def test_similarity_of_random_directions_is_the_share_of_the_space() -> None:
    phi = torch.stack([similarity(orthonormal(40, 4, s).T, orthonormal(40, 8, s + 500).T)[3, 7] for s in range(200)])
    assert float(phi.mean()) == pytest.approx(8 / 40, abs=0.01)


METHODS: list[tuple[PEFTStrategy, str]] = [
    (LoRA(rank=4), "bert"),
    (LoRA(rank=4), "gpt2"),
    (LoRA(rank=4, targets=["embedding", "ffn_up"], rank_stabilized=True), "bert"),
    (LoRA(rank=4, init="pissa"), "bert"),
    (LoRA(rank=4, init="milora"), "gpt2"),
    (DoRA(rank=4), "bert"),
    (DoRA(rank=4), "gpt2"),
    (AdaLoRA(initial_rank=6, rank=3), "bert"),
    (DynamicDoRA(initial_rank=6, rank=3), "bert"),
    (VeRA(rank=48), "bert"),
    (VeRA(rank=16), "gpt2"),
    (IA3(), "bert"),
    (IA3(), "gpt2"),
]


@pytest.mark.parametrize(("strategy", "kind"), METHODS, ids=lambda value: getattr(value, "name", value))
def test_updates_are_what_merging_adds(strategy: PEFTStrategy, kind: str) -> None:
    backbone = tiny(kind)
    before = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    adapter = attach(backbone, strategy, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    updates = list(adapter.weight_updates() or [])
    assert updates
    adapter.merge()
    adapter.remove()
    added: dict[str, torch.Tensor] = {}
    plain = tiny(kind).model
    for name, parameter in before.items():
        layer = name.removesuffix(".weight")
        change = backbone.model.get_parameter(name).detach() - parameter
        if name.endswith(".weight") and parameter.ndim == 2 and change.abs().max() > 0:
            plain.get_parameter(name).data = change
            added[layer] = weight_matrix(plain.get_submodule(layer)).detach().clone()
    names = {update.name.partition(" (")[0] for update in updates}
    assert names == {name for name in added if not name.startswith(("classifier", "score"))}
    for layer in names:
        parts = [update for update in updates if update.name.partition(" (")[0] == layer]
        total = added[layer].square().sum()
        torch.testing.assert_close(
            sum(part.svd()[1].square().sum() for part in parts).float(),  # type: ignore[union-attr]
            total,
            rtol=1e-4,
            atol=1e-6,
        )
        if len(parts) == 1 and parts[0].weight.shape == added[layer].shape:
            U, S, Vh = parts[0].svd()
            torch.testing.assert_close(((U * S) @ Vh).float(), added[layer], atol=1e-5, rtol=1e-4)


def trained(peftlab: Peftlab, reviews: Path, name: str, *more: str) -> Path:
    arguments = ["train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", f"name={name}", *more]
    done = peftlab(*arguments)
    assert done.status == 0, done.err
    return run_folder(name)


def test_two_runs(peftlab: Peftlab, reviews: Path) -> None:
    one = trained(peftlab, reviews, "one", "peft.rank=4")
    two = trained(peftlab, reviews, "two", "peft.rank=2", "seed=1", "backbone.train_head=false")
    text = peftlab("inspect", one)
    assert text.status == 0
    assert max(map(len, text.out.splitlines())) <= 110
    assert "4 of 4" in text.out
    assert (one / "inspect.png").read_bytes().startswith(b"\x89PNG")

    same = json.loads(peftlab("inspect", one, one, "--json").out)
    for phi in same["similarity"]["layers"].values():
        assert phi == [[pytest.approx(1.0)] * 4] * 4
    both = peftlab("inspect", one, two, "--json", "--to", "both.png")
    found = json.loads(both.out)
    assert [len(found["similarity"]["mean"]), len(found["similarity"]["mean"][0])] == [4, 2]
    assert all(0 <= value <= 1 for row in found["similarity"]["mean"] for value in row)
    assert Path("both.png").exists()
    beside = peftlab("inspect", one, two)
    assert "did not start from the same backbone" in beside.out  # random backbones, by their seeds
    assert "(4, 2)" in beside.out
    assert "Both have seed 0" in peftlab("inspect", one, one).out


def test_runs_with_some_layers_in_common(peftlab: Peftlab, reviews: Path) -> None:
    one = trained(peftlab, reviews, "one", "peft.targets=[query,value]")
    two = trained(peftlab, reviews, "two", "peft.targets=[query,key]", "seed=1")
    done = peftlab("inspect", one, two)
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert f"Only {one} has adapted bert.encoder.layer.0.attention.self.value" in said
    assert f"Only {two} has adapted bert.encoder.layer.0.attention.self.key" in said
    found = json.loads(peftlab("inspect", one, two, "--json").out)["similarity"]
    assert {name.rpartition(".")[2] for name in found["layers"]} == {"query"}
    assert len(found["left_out"]) == 2


def test_a_composition_shows_what_each_of_its_methods_changes(peftlab: Peftlab, reviews: Path) -> None:
    """Factors of LoRA also beside a prefix, which nothing can merge; and weights that train themselves."""
    methods = (
        "[{name: lora, rank: 2, targets: [query]}, {name: prefix_tuning, length: 3}, {name: parameters, patterns: "
    )
    run = trained(peftlab, reviews, "c", "peft=compose", f"peft.methods={methods}['layer.1.output.dense.weight']}}]")
    found = json.loads(peftlab("inspect", run, "--json").out)["layers"]
    assert [(layer["name"].partition("layer.")[2], len(layer["singular_values"])) for layer in found] == [
        ("0.attention.self.query", 2),
        ("1.attention.self.query", 2),
        ("1.output.dense", 32),
    ]


def test_the_picture_shows_the_largest_and_chance(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    from matplotlib.figure import Figure

    from peftlab.report.figures.spectra import Spectrum, draw_inspection

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **named: (drawn.append(self), save(self, *args, **named))
    )
    layers = [
        Spectrum(f"layer.{block}.query", [1.0 / (k + 1) for k in range(32)], 0.628 - 0.1 * block) for block in (0, 1)
    ]
    chance = [[max(i, j) / 32 for j in (1, 2)] for i in (1, 2)]
    draw_inspection(scratch / "x.png", layers, title="t", phi=[[0.1, 0.2], [0.3, 0.4]], chance=chance, phi_title="φ")
    spectra, sizes, phi = drawn[0].axes[:3]
    assert spectra.get_xticks()[0] == 1
    assert sizes.get_ylim()[1] > 1.05 * 0.628
    assert "0.03 … 0.06" in phi.get_title()


@pytest.mark.parametrize("change", [["peft=full"], ["peft=last_layers", "peft.layers=1"]])
def test_own_weights_are_compared_with_those_before(peftlab: Peftlab, reviews: Path, change: list[str]) -> None:
    run = trained(peftlab, reviews, "own", *change)
    layers = {layer["name"]: layer for layer in json.loads(peftlab("inspect", run, "--json").out)["layers"]}
    blocks = 1 if "last_layers" in change[0] else 2
    assert sum(name.endswith("attention.self.query") for name in layers) == blocks
    assert not any(name.startswith("classifier") for name in layers)
    assert any("embeddings" in name for name in layers) == (blocks == 2)
    assert all(0 < layer["relative_size"] < 1 for name, layer in layers.items() if "query" in name)
    assert all(layer["above_one_percent"] > 8 for name, layer in layers.items() if "ffn" in name)


def test_the_text_classifier(peftlab: Peftlab, reviews: Path) -> None:
    for change in (["peft=lora", "peft.rank=2", "peft.targets=[hidden]"], ["peft=full"]):
        name = change[0].partition("=")[2]
        run = trained(peftlab, reviews, name, "backbone=text_classifier", *change)
        (layer,) = json.loads(peftlab("inspect", run, "--json").out)["layers"]
        assert layer["name"] == "hidden"
        assert layer["shape"] == [128, 100]
        assert len(layer["singular_values"]) == (2 if name == "lora" else 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["peft=prompt_tuning", "peft.length=4"], "stands beside the weights"),
        (["peft=houlsby"], "stands beside the weights"),
        (["peft=bitfit"], "trains vectors of the backbone only"),
        (["peft=head"], "trains nothing beside the head"),
    ],
)
def test_methods_without_a_weight_update(peftlab: Peftlab, reviews: Path, change: list[str], said: str) -> None:
    result = peftlab("inspect", trained(peftlab, reviews, "none", *change))
    assert result.status == 2
    assert said in result.err


def test_wrong_uses(peftlab: Peftlab, reviews: Path) -> None:
    one = trained(peftlab, reviews, "one")
    two = trained(peftlab, reviews, "two", "peft.targets=[key]")
    other = trained(peftlab, reviews, "other", "backbone.architecture.hidden_size=64")
    for arguments, said in (
        ([one, two], "have adapted no layer in common"),
        ([one, other], "Compare runs on the same backbone"),
        ([one, "--to", "x.pdf"], "must end in .png"),
        ([one, "--directions", "0"], "at least 1"),
        (["nowhere"], "no run folder"),
    ):
        result = peftlab("inspect", *arguments)
        assert result.status == 2, arguments
        assert said in result.err
