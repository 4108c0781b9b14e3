"""HF peft's checkpoint format: one file a ``peft_type``, written from an adapter and read into one."""
