"""What a run checks before it trains: the teacher against its record, one batch run dry."""
