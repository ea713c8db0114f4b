"""A row of a table meets a benchmark: scores, metrics (eq. 8), intervals and tables, and the analyses of
section 5."""
