"""A run is a fact: its identity, its folder, its record."""
