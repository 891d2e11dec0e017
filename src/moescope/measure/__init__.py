"""What measuring with a model shares: the choice of text, passes, trials, controls, the journal."""
