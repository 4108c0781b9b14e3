"""AdamW of bitsandbytes: the same update as torch's, exact resuming, 8-bit states, refusals on a CPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import PeftlabError
from peftlab.training.optim import AdamW
from peftlab.training.optim_bitsandbytes import AdamW8bit, PagedAdamW, PagedAdamW8bit
from tests.conftest import TINY, Peftlab, run_folder
from tests.forked import Forked


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in own:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = (noise + 0.1 * parameter.detach()).to(parameter.dtype)
    optimizer.step()


SHAPES = ((64, 128), (40, 8), (64,))


def test_with_32_bit_states_it_is_torch_s_adamw() -> None:
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
    one = AdamW8bit(**settings, min_8bit_size=10**6).build([{"params": ours, "lr": 0.01}])
    other = AdamW(**settings).build([{"params": theirs, "lr": 0.01}])
    assert [(g["weight_decay"], g["lr"]) for g in one.param_groups] == [(0.1, 0.01), (0.0, 0.01)]
    for number in range(5):
        step(one, ours, number)
        step(other, theirs, number)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_large_tensors_have_8_bit_states_and_nearly_the_same_update() -> None:
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    start = ours[0].detach().clone()
    one = AdamW8bit(lr=0.01).build([{"params": ours, "lr": 0.01}])
    other = AdamW(lr=0.01).build([{"params": theirs, "lr": 0.01}])
    for number in range(5):
        step(one, ours, number)
        step(other, theirs, number)
    assert [one.state[p]["state1"].dtype for p in ours] == [torch.uint8, torch.float32, torch.float32]
    assert one.state[ours[0]]["state2"].dtype == torch.uint8
    moved, expected = ours[0].detach() - start, theirs[0].detach() - start
    assert not torch.equal(moved, expected)
    assert float((moved - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_exact_and_loads_as_plain_tensors(dtype: torch.dtype) -> None:
    def fresh() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        own = [nn.Parameter(p.detach().to(dtype)) for p in parameters(*SHAPES)]
        return own, AdamW8bit(lr=0.01, weight_decay=0.1).build([{"params": own, "lr": 0.01}])

    own, optimizer = fresh()
    for number in range(3):
        step(optimizer, own, number)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "own": [p.detach() for p in own]}, file)
    again, resumed = fresh()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["optimizer"])
    for parameter, value in zip(again, saved["own"], strict=True):
        parameter.data.copy_(value)
    for number in range(3, 6):
        step(optimizer, own, number)
        step(resumed, again, number)
    for a, b in zip(own, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("config", "instead"), [(PagedAdamW, "optim=adamw,"), (PagedAdamW8bit, "optim=adamw_8bit,")])
def test_there_is_nothing_to_page_on_a_cpu(config: Any, instead: str) -> None:
    with pytest.raises(PeftlabError, match="nothing to page") as error:
        config(lr=0.1).build([{"params": parameters((4, 4)), "lr": 0.1}])
    assert instead in str(error.value)


def test_double_precision_is_refused() -> None:
    with pytest.raises(PeftlabError, match=r"torch\.float64"):
        AdamW8bit(lr=0.1).build([{"params": [nn.Parameter(torch.zeros(3, dtype=torch.float64))], "lr": 0.1}])


def test_a_killed_run_resumes_to_the_same_bits(peftlab: Peftlab, reviews: Path) -> None:
    arguments = [
        *TINY,
        f"data.path={reviews}",
        "peft=full",
        "optim=adamw_8bit",
        "trainer.max_epochs=4",
        "optim.lr=1e-3",
    ]
    assert peftlab("train", *arguments, "output_dir=outputs/undisturbed", "name=t").status == 0
    Forked("train", *arguments, "name=killed").killed_at("epoch 2/4")
    again = peftlab("train", *arguments, "name=killed")
    assert again.status == 0, again.err
    assert "resuming from" in again.out
    assert (run_folder("killed") / "adapter.safetensors").read_bytes() == (
        run_folder("undisturbed/t") / "adapter.safetensors"
    ).read_bytes()


def test_a_paged_run_on_a_cpu_is_refused_and_leaves_nothing(peftlab: Peftlab, reviews: Path) -> None:
    for name in ("paged_adamw", "paged_adamw_8bit"):
        done = peftlab(
            "train", *TINY, f"data.path={reviews}", f"optim={name}", "trainer.accelerator=cpu", f"name={name}"
        )
        assert done.status == 2
        assert "nothing to page" in done.err
        assert len(done.err.strip().splitlines()) == 1
        assert not list(Path("outputs").glob(f"{name}/*"))
