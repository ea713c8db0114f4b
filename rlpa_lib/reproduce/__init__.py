"""All notebooks in order, with papermill."""
