"""How it runs: command line, run folders, checkpoints, bundles, zoo."""
