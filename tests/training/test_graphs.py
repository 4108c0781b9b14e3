"""Steps that are recorded and replayed: on a CPU, by a recorder that does the recorded work again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab import Run, fit
from peftlab.backbones.transformer import TransformerConfig
from peftlab.seeding import seed_draws
from peftlab.training.graphs import GraphedSteps, graphed_steps

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 259}


class Again:
    """What CUDA does, as far as Python can see: work that has been recorded is done again, on the same tensors."""

    def __init__(self, spoil: float = 0.0, error: Exception | None = None) -> None:
        self.spoil, self.error, self.replays = spoil, error, 0

    def record(self, work: Callable[[], None]) -> Any:
        if self.error is not None:
            raise self.error
        work()
        return _Replay(self, work)

    def random_state(self) -> Tensor:
        return torch.zeros(1)

    def set_random_state(self, state: Tensor) -> None:
        pass


class _Replay:
    def __init__(self, recorder: Again, work: Callable[[], None]) -> None:
        self.recorder, self.work = recorder, work

    def replay(self) -> None:
        self.recorder.replays += 1
        self.work()


class Model(nn.Module):
    """Two layers, of which one may take no part, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def computed(self, batch: Any) -> dict[str, Tensor]:
        outputs = self.last(torch.tanh(self.first(batch["input_ids"])))
        return {"outputs": outputs, "loss": nn.functional.cross_entropy(outputs, batch["labels"])}


def batches(sizes: list[int]) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randn(n, 3), "labels": torch.randint(2, (n,)), "full": True} for n in sizes]


def trained(sizes: list[int], accumulate: int, recorder: Again | None, said: list[str]) -> tuple[Model, GraphedSteps]:
    """Some steps of AdamW, as Lightning does them: forward, zero_grad, backward, step."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    plain = model.computed
    graphs = GraphedSteps(plain, plain, list(model.parameters()), recorder or Again(), said.append)
    for number, batch in enumerate(batches(sizes)):
        done = graphs.step(batch, accumulate) if recorder is not None else None
        computed = done or model.computed(batch)
        if number % accumulate == 0:
            optimizer.zero_grad()
        if recorder is None or not graphs.give_gradients():
            (computed["loss"] / accumulate).backward()
        if (number + 1) % accumulate == 0:
            optimizer.step()
    return model, graphs


@pytest.mark.parametrize("accumulate", [1, 3])
def test_replayed_steps_train_as_plain_ones(accumulate: int) -> None:
    sizes, said = [5, 5, 5, 2, 5, 2, 2, 5, 2, 5, 5, 5], list[str]()
    expected, _ = trained(sizes, accumulate, None, said)
    recorder = Again()
    # a static output must not be what a later replay writes into
    found, graphs = trained(sizes, accumulate, recorder, said)
    assert graphs.replayed == 8
    assert recorder.replays == 10
    for (name, a), b in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert found.unused.weight.grad is None
    assert not said


def test_outputs_are_not_overwritten_by_the_next_replay() -> None:
    torch.manual_seed(0)
    model = Model()
    graphs = GraphedSteps(model.computed, model.computed, list(model.parameters()), Again())
    given = batches([5, 5, 5, 5])
    kept = [graphs.step(batch, 1) for batch in given]
    assert kept[0] is None
    for batch, step in zip(given[1:], kept[1:], strict=True):
        assert step is not None
        assert torch.equal(step["outputs"], model.computed(batch)["outputs"])


def test_a_graph_that_computes_something_else_is_not_taken() -> None:
    torch.manual_seed(0)
    model, said = Model(), list[str]()

    def other(batch: Any) -> dict[str, Tensor]:
        computed = model.computed(batch)
        return computed | {"loss": computed["loss"] * (1 + 1e-6)}

    graphs = GraphedSteps(model.computed, other, list(model.parameters()), Again(), said.append)
    done = [graphs.step(batch, 1) for batch in batches([5, 5, 5, 5])]
    assert [one is None for one in done] == [True, False, True, True]
    assert graphs.replayed == 0
    assert len(said) == 1
    assert "(5, 3)" in said[0]
    assert "differ" in said[0]


@pytest.mark.parametrize(
    ("recorder", "draws", "word"),
    [
        (Again(error=RuntimeError("operation not permitted when stream is capturing\nmore")), False, "capturing"),
        (Again(), True, "host"),
    ],
)
def test_what_cannot_be_recorded_is_computed_in_the_plain_way(recorder: Again, draws: bool, word: str) -> None:
    """A layer that is left out at random is decided on the host: a graph would always leave out the same."""
    torch.manual_seed(0)
    model, said = Model(), list[str]()

    def computed(batch: Any) -> dict[str, Tensor]:
        if draws:
            torch.rand(())
        return model.computed(batch)

    graphs = GraphedSteps(computed, computed, list(model.parameters()), recorder, said.append)
    done = [graphs.step(batch, 1) for batch in batches([5, 5, 5])]
    assert done[1] is not None
    assert done[2] is None
    assert graphs.give_gradients()
    assert len(said) == 1
    assert word in said[0]
    assert "more" not in said[0]


def test_other_flags_and_shares_of_the_loss_have_graphs_of_their_own() -> None:
    model, said = Model(), list[str]()
    graphs = GraphedSteps(model.computed, model.computed, list(model.parameters()), Again(), said.append)
    [batch] = batches([5])
    for one in (batch, batch | {"full": False}, batch):
        graphs.step(one, 1)
    assert graphs.step(batch, 2) is None
    assert graphs.step(batch | {"full": False}, 1) is not None


WORDS = (
    "backbone=tiny", "backbone.dropout=0", "logger=none", "data.batch_size=8", "data.max_length=32", "name=g",
    "data.pad_to_multiple_of=8", "trainer.max_epochs=2", "trainer.progress_bar=false", "trainer.threads=1",
)  # fmt: skip


def fitted(monkeypatch: pytest.MonkeyPatch, *more: str, graphs: bool) -> tuple[Run, list[GraphedSteps]]:
    """A run, by graphs that are recorded on the CPU or without any."""
    made: list[GraphedSteps] = []

    def with_graphs(module: Any) -> Any:
        made.append(found := graphed_steps(module, Again()))
        return found

    monkeypatch.setattr("peftlab.training.module.graphed_steps", with_graphs)
    texts = [f"{'a fine' if n % 2 else 'dull'} film {'and long ' * (n % 5)}{n}" for n in range(90)]
    data = (texts, ["good" if n % 2 else "bad" for n in range(90)])
    folder = f"output_dir={'graphs' if graphs else 'plain'}"
    return fit(*WORDS, *more, folder, f"trainer.cuda_graphs={graphs}", data=data), made


@pytest.mark.parametrize(
    "more", [("peft=dora",), ("trainer.accumulate_grad_batches=2", "trainer.label_smoothing=0.1", "data.batch_size=4")]
)
def test_a_run_by_graphs_ends_with_the_bits_of_one_without(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    plain, _ = fitted(monkeypatch, *more, graphs=False)
    by_graphs, [made] = fitted(monkeypatch, *more, graphs=True)
    assert by_graphs.key == plain.key
    assert made.replayed > 5
    assert (plain.folder / "adapter.safetensors").read_bytes() == (
        by_graphs.folder / "adapter.safetensors"
    ).read_bytes()
    untimed = [{key: value for key, value in row.items() if key != "train_seconds"} for row in plain.record["history"]]
    assert untimed == [{key: row[key] for key in untimed[0]} for row in by_graphs.record["history"]]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("peft=adalora",), "schedule of its own"),
        (("backbone.gradient_checkpointing=true",), "random state inside a step"),
        (("backbone.dropout=0.1",), "on the host"),
        ((), "on cpu"),
    ],
)
def test_it_says_where_it_does_not_apply(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: tuple[str, ...], reason: str
) -> None:
    if more:
        _, [made] = fitted(monkeypatch, *more, graphs=True)
        assert made is None or made.replayed == 0
    else:
        fit(*WORDS, "trainer.cuda_graphs=true", "trainer.max_epochs=1", data=(["a b", "c d"] * 20, ["x", "y"] * 20))
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("full", [True, False])
def test_what_is_recorded_takes_the_way_of_the_plain_step(
    monkeypatch: pytest.MonkeyPatch, model_type: str, full: bool
) -> None:
    """transformers looks whether a mask has padding, and goes another way through attention if it has none."""
    backbone = TransformerConfig(architecture={**BERT, "model_type": model_type}).build(2, seed=0).eval()
    ids = torch.randint(5, 250, (3, 16))
    mask = torch.ones_like(ids) if full else torch.ones_like(ids).index_fill(1, torch.arange(12, 16), 0)
    ways: list[Any] = []
    attend = F.scaled_dot_product_attention

    def noting(*given: Any, **how: Any) -> Tensor:
        ways.append((how.get("attn_mask") is None, how.get("is_causal")))
        return attend(*given, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    with torch.no_grad():
        expected = backbone(ids, mask)
    plain, ways = ways, []
    monkeypatch.setattr(Tensor, "__bool__", lambda self: pytest.fail("it looks at a tensor"))
    with torch.no_grad(), backbone.without_a_look(full=full):
        found = backbone(ids, mask)
    monkeypatch.undo()
    assert torch.equal(found, expected)
    assert ways == plain
    assert ways[0][0] == full


def test_a_steps_draws_are_seeded_as_torch_seeds_them() -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(9)
    seed_draws(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(9), expected)
