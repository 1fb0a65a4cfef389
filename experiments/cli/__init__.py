"""argv -> one of the rooms: one file a command."""
