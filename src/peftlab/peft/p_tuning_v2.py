"""P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks.

Liu et al. 2021, arXiv:2110.07602.

Prefix tuning (:mod:`peftlab.peft.key_value_prefix` has the equations) for classification: n trained keys and values
in every layer ("deep prompt tuning", section 3.2), and what the authors changed for language understanding:

- a linear classification head from random numbers instead of predicted label words: as every method here;
- the keys and values train directly, and a network over them is an option, since it helped on some tasks
  and hurt on others (section 3.3);
- short prompts: about 20 for simple classification, around 100 for hard sequence labelling.

So the computation is that of ``peft=prefix_tuning``; the start differs in that the table itself is drawn from N(0, 1).
The authors' code applies the model's dropout to the prefix (``peft.dropout=0.1`` for BERT and kin) and
moves the text's positions by n; here they stay. Multi-task training of the prompts is left out.

Trainable: n·2·L·d, with d the size of a layer's keys and L attention modules; with reparameterize
n·d + (d+1)·h + (h+1)·2·L·d, h = hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.peft.base import Supports
from peftlab.peft.key_value_prefix import KeyValuePrefix


@dataclass(kw_only=True)
class PTuningV2(KeyValuePrefix, name="p_tuning_v2"):
    """Deep prompts: trained keys and values in front of those of every layer."""

    supports = Supports(identity_at_start=False, hf_peft="PREFIX_TUNING")
    count = "n·2·L·d"
