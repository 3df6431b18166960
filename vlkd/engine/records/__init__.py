"""What a run leaves behind: its record, seeds put together, tables and pictures of many runs."""
