"""Many edits over one text, each scored against the plain model; what is shared is run once."""
