"""The offline world: persona grammar, agenda user, rule judge and the tiny model. Results here are about the miniature."""
