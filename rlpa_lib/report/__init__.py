"""The report page, the map of the paper, and what is published of runs."""
