"""Pure functions on arrays, and the tables that they make of a run."""
