"""Images with one label each, and unlabelled pools."""
