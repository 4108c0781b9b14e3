"""What the code computed before it was rewritten; :mod:`tests.goldens.make` wrote it, the tests compare."""
