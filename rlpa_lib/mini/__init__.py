"""The offline world: personas, users, judges and the tiny model. Results here are about the miniature."""
