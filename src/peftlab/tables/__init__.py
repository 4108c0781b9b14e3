"""Tables of papers, declared in ``sweeps/tables`` and computed again; one module a kind of table."""
