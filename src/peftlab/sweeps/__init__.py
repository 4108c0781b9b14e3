"""Declared sweeps: ``sweeps/*.yaml`` say which runs make a table, and how it is made from their records."""
