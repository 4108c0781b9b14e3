"""PEFT methods: one file each. ``base`` holds the protocol, ``surgery`` the shared tools."""
