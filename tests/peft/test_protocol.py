"""What holds for every method in the registry, and for the registry itself."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from peftlab.commands.methods import markdown, summary, tables
from peftlab.errors import ConfigError, PeftlabError
from peftlab.peft.base import PEFTStrategy, Supports, attach, methods
from peftlab.report.render.terminal import print_table
from peftlab.report.table import Table
from tests.conftest import Peftlab
from tests.peft.tiny import batch, tiny

KNOWN = dict(methods())


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "import"])  # that one needs a folder: tests/interop
def test_it_trains_saves_and_loads(name: str) -> None:
    """Frozen tensors keep their bits, trainable ones get gradients, and the saved state restores the logits."""
    backbone = tiny("bert")
    adapter = attach(backbone, KNOWN[name](), seed=0)
    frozen = {n: p.clone() for n, p in backbone.named_parameters() if not p.requires_grad}
    ids, mask = batch()
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone(ids, mask), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    for parameter_name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
        else:
            assert torch.equal(parameter, frozen[parameter_name]), parameter_name
    state = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    other = tiny("bert")
    another = attach(other, KNOWN[name](), seed=99)
    assert not torch.equal(other(ids, mask), backbone(ids, mask))
    another.load_state_dict(state)
    assert torch.equal(other(ids, mask), backbone(ids, mask))


@pytest.mark.parametrize("name", KNOWN)
def test_it_says_what_it_is(name: str, peftlab: Peftlab) -> None:
    table, explained = peftlab("methods"), peftlab("methods", name)
    assert name in table.out
    assert explained.status == 0
    assert f"peft={name}" in explained.out
    assert KNOWN[name].count
    assert summary(KNOWN[name])
    said = " ".join(explained.out.split())
    assert " ".join(KNOWN[name].count.split()) in said
    assert "A new head, as a classification has, trains beside it (backbone.train_head=false freezes it)" in said


@pytest.mark.parametrize("width", [80, 110, 140])
def test_the_tables_of_methods_fit_a_terminal(width: int) -> None:
    """Every method has its line with what it can do, and nothing runs beyond the terminal's edge."""
    what, can = (on_terminal(one, width) for one in tables(KNOWN))
    assert max(map(len, [*what, *can])) <= width
    for name, cls in KNOWN.items():
        supports = cls.supports
        flags = (
            supports.encoder, supports.decoder, supports.quantized, supports.identity_at_start, supports.mergeable
        )  # fmt: skip
        (line,) = (one.split() for one in can if one.split()[:1] == [name])
        assert line[1:6] == ["yes" if holds else "no" for holds in flags]
        number = next(n for n, one in enumerate(what) if one.split()[:1] == [name])
        below = " ".join(" ".join(what[number : number + 8]).split())
        assert all(word in below for word in summary(cls).split())


def on_terminal(table: Table, width: int) -> list[str]:
    out = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(out, table, elsewhere="elsewhere")
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_long_names_of_hf_peft_stand_whole_in_markdown() -> None:
    class Long(PEFTStrategy):
        """A method that is in no registry."""

        name = "long"
        supports = Supports(hf_peft="MULTITASK_PROMPT_TUNING", encoder=False)
        count = "n · d"

        def select(self, backbone):  # type: ignore[no-untyped-def]
            pass

        def build(self, selection, *, seed, batches=None):  # type: ignore[no-untyped-def]
            pass

    assert "| no | yes | yes | yes | no | MULTITASK_PROMPT_TUNING | n · d |" in markdown({"long": Long})


def test_methods_explains_fields(peftlab: Peftlab) -> None:
    text = peftlab("methods", "lora").out
    for part in (
        "arXiv:2106.09685",
        "rank: PositiveInt = 8",
        "Rank r of the update",
        "alpha: PositiveFloat = 16.0",
    ):
        assert part in text


def test_load_refuses_what_does_not_fit() -> None:
    adapter = attach(tiny("bert"), KNOWN["lora"](), seed=0)
    state = dict(adapter.state_dict())
    name = min(state)
    for wrong, said in (
        ({k: v for k, v in state.items() if k != name}, "is missing"),
        (state | {"nonsense": torch.zeros(1)}, "is not of this model"),
        (state | {name: torch.zeros(7)}, "is (7,) in the file"),
    ):
        with pytest.raises(PeftlabError) as error:
            adapter.load_state_dict(wrong)
        assert said in str(error.value)


def test_full_fine_tuning_of_a_quantised_backbone_is_refused() -> None:
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=nf4"):
        attach(tiny("bert", quantize="nf4"), KNOWN["full"](), seed=0)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(PeftlabError, match="leaves nothing to train"):
        attach(tiny("bert"), KNOWN["head"](), seed=0, train_head=False)


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two PEFT methods are called 'lora'"):

        class Another(PEFTStrategy, name="lora"):
            def select(self, backbone):  # type: ignore[no-untyped-def]
                pass

            def build(self, selection, *, seed, batches=None):  # type: ignore[no-untyped-def]
                pass


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"import"}))
def test_switched_off_the_backbone_is_as_it_was(name: str, kind: str) -> None:
    """However far its parameters are from their start; and on again, it computes what it computed before."""
    backbone, plain = tiny(kind), tiny(kind)
    if name == "bitfit" and kind == "llama":
        pytest.skip("Llama has no biases")
    adapter = attach(backbone, KNOWN[name](), seed=0, train_head=name == "head")
    ids, mask = batch()
    ids = ids * mask  # the padding token where nothing is
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        adapted = backbone(ids, mask)
        assert not torch.equal(adapted, plain(ids, mask))
        if adapter.strategy.supports.adds_nothing:  # it trains the backbone's own tensors, or the head alone
            with pytest.raises(PeftlabError, match="no adapter to switch off"), adapter.disabled():
                pass
            return
        with adapter.disabled():
            torch.testing.assert_close(backbone(ids, mask), plain(ids, mask), atol=1e-6, rtol=0)
        assert torch.equal(backbone(ids, mask), adapted)
