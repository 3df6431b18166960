"""`vlkd test` of a config with the section `benchmark`: predict videos, score them, report."""
