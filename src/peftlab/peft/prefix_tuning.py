"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li & Liang 2021, arXiv:2101.00190).

    h_i = P[i]               for the n prefix positions, in every layer        (paper, eq. 3)
    P[i] = MLP(P'[i])        while it trains                                   (paper, section 4.3)

A transformer reads other positions through their keys and values alone, so P holds n keys and n values for
each attention module. :mod:`peftlab.peft.key_value_prefix` has the equations, the order of the table and how it
reaches the model. Training P directly was unstable for the authors; the MLP over P' is their remedy and the
default here. After training P alone is needed; the MLP is saved with it, so that training can go on.

Departures from the paper: P' is as wide as a layer's keys (the authors' code; the paper has a narrower one); the
start is random, P' from N(0, 1) and the MLP as torch starts it, not the activations of words; the
classification head trains as well. The text's positions are not moved (HF peft moves them by n;
``position_shift=true`` does, too).

Trainable, with d the size of a layer's keys, L attention modules and h = hidden:
n·d + (d+1)·h + (h+1)·2·L·d, of which n·2·L·d remain after training; without the MLP n·2·L·d.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.peft.base import Supports
from peftlab.peft.key_value_prefix import KeyValuePrefix


@dataclass(kw_only=True)
class PrefixTuning(KeyValuePrefix, name="prefix_tuning"):
    """Trained keys and values in front of those of every layer, out of a small network."""

    supports = Supports(identity_at_start=False, hf_peft="PREFIX_TUNING")
    count = "n·d + (d+1)·h + (h+1)·2·L·d; n·2·L·d remain after training"

    reparameterize: bool = True
    """Let a network of two linear layers make the keys and values, which trains more smoothly."""
