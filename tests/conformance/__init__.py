"""Every method of the registry on every kind of backbone: what the protocol promises, cell by cell."""
