"""Adapters in the checkpoint format of Hugging Face peft, in both directions, without importing peft."""
