"""report.html: asks nothing of anywhere, escapes what it shows, and sorts, filters and opens in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from tests.conftest import Peftlab
from tests.report.made_up import sweep_file, three_methods
from tests.report.render.browsing import Page, in_browser


@pytest.fixture
def page(scratch: Path, peftlab: Peftlab) -> Path:
    folder = three_methods(scratch / "out puts" / "t")
    (folder / ".logs").mkdir()
    (folder / ".logs" / "lora0.txt").write_text("epoch 1\n")
    (folder / ".logs" / "head2.txt").write_text("epoch 1\n<b>Killed</b>\n")
    shutil.rmtree(folder / "head2")
    content = sweep_file(folder, title="Three <methods> & more")
    content["cells"][1]["failed"] = {"2": "killed by signal 9"}
    content["cells"][2]["label"] = 'LoRA </script> "q"'
    (folder / "sweep.json").write_text(json.dumps(content))
    assert peftlab("report", folder, "--format", "html,figures").status == 0
    return folder / "report" / "report.html"


LABELS = ["full fine-tuning", "head only", 'LoRA </script> "q"']


def test_it_is_complete_in_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.rows == LABELS
    for source in found.sources:
        assert source.startswith("data:") or re.fullmatch(r"[\w./ %-]+", source), source[:80]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "Three &lt;methods&gt; &amp; more" in text
    assert "&lt;b&gt;Killed&lt;/b&gt;" in text
    assert text.count("</script>") == 2
    assert found.sorts
    assert set(found.sorts) == {"none"}
    assert html.escape("head only, seed 2: killed by signal 9") in text


def test_it_sorts_numbers_as_numbers_and_names_as_names(page: Path, scratch: Path) -> None:
    found = in_browser(page, scratch, "sort=3&dir=ascending")  # 100, 1,100 and 10,000 trainable parameters
    assert found.rows == ["head only", 'LoRA </script> "q"', "full fine-tuning"]
    assert found.sorts[:4] == ["none", "none", "ascending", "none"]
    found = in_browser(page, scratch, "sort=3&dir=descending")
    assert found.rows == ["full fine-tuning", 'LoRA </script> "q"', "head only"]
    assert in_browser(page, scratch, "sort=1&dir=descending").rows == ['LoRA </script> "q"', "head only", LABELS[0]]


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("peft=lora", LABELS[2:]),
        ("peft=lor", []),
        ("fine", LABELS[:1]),
        ("ONLY head", LABELS[1:2]),
        ("0.8", [LABELS[0], LABELS[2]]),
        ("", LABELS),
    ],
)
def test_it_filters_by_words_and_by_key(page: Path, scratch: Path, typed: str, rows: list[str]) -> None:
    assert in_browser(page, scratch, f"q={quote(typed)}").rows == rows


def test_every_run_links_to_its_files(page: Path, scratch: Path) -> None:
    found = in_browser(page, scratch, "open=1")
    targets = [unquote(link) for link in found.links]
    assert sum(link.endswith("record.json") for link in targets) == 8
    assert sum(link.endswith("config.yaml") for link in targets) == 8
    assert "../.logs/lora0.txt" in targets
    for link in targets:
        assert (page.parent / link).exists(), link


def test_in_a_narrow_window_the_labels_stay_in_sight(page: Path, scratch: Path) -> None:
    script = """<script>
      const box = document.querySelector(".scroll"); box.scrollLeft = 10000;
      const left = (cell) => cell.getBoundingClientRect().left - box.getBoundingClientRect().left;
      const places = [...box.querySelectorAll("thead th.lead, tr.row > th")].map((cell) => Math.round(left(cell)));
      const still = new Set(places).size === 1 && Math.abs(places[0]) <= 1;
      document.body.append(`scrolled ${box.scrollLeft > 50}, places ${still}`);
    </script></body>"""
    copy = page.with_name("narrow.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    text = in_browser(copy, scratch, "", "--window-size=600,800").text
    assert "scrolled true, places true" in text
