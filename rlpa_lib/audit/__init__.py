"""The paper's printed numbers held against each other."""
