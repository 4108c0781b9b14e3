"""What holds for every method in the registry, and for the registry itself."""

from __future__ import annotations

import pytest
import torch

from peftlab.commands.methods import markdown_table, summary, table
from peftlab.errors import ConfigError, PeftlabError
from peftlab.peft.base import PEFTStrategy, Supports, attach, methods
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
    assert all(line.strip() in explained.out for line in KNOWN[name].count.splitlines())
    assert "A new head, as a classification has, trains beside it" in explained.out
    assert "(backbone.train_head=false freezes it)" in explained.out


def test_the_table_of_methods_fits_a_terminal() -> None:
    """Every method has its line with what it can do, and nothing runs beyond 110 columns."""
    for width in (110, 140):
        lines = table(KNOWN, width).splitlines()
        assert max(map(len, lines)) <= width
        for name, cls in KNOWN.items():
            (line,) = (one for one in lines if one.startswith(f"{name} "))
            supports = cls.supports
            declared = (
                supports.encoder,
                supports.decoder,
                supports.quantized,
                supports.identity_at_start,
                supports.mergeable,
            )
            assert line.split()[1:6] == ["yes" if holds else "no" for holds in declared]
            below = " ".join(one.strip() for one in lines[lines.index(line) + 1 :][:6])
            assert " ".join(summary(cls).split()) in " ".join(below.split())


def test_long_names_of_hf_peft_are_broken_behind_underscores() -> None:
    class Long(PEFTStrategy):
        """A method that is in no registry."""

        name = "long"
        supports = Supports(hf_peft="MULTITASK_PROMPT_TUNING", encoder=False)
        count = "n · d"

        def select(self, backbone):  # type: ignore[no-untyped-def]
            pass

        def build(self, selection, *, seed, batches=None):  # type: ignore[no-untyped-def]
            pass

    shown = table({"long": Long}, 110)
    cells = [line.split() for line in shown.splitlines()]
    assert ["long", "no", "yes", "yes", "yes", "no", "MULTITASK_", "n", "·", "d"] in cells
    assert ["PROMPT_"] in cells
    assert ["TUNING"] in cells
    assert "| no | yes | yes | yes | no | MULTITASK_PROMPT_TUNING | n · d |" in markdown_table({"long": Long})


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
