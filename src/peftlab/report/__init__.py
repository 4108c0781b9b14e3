"""What people look at, made from records and histories only."""
