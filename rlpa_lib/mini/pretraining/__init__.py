"""How the tiny model that ships in mini/weights was made: its text, its architecture, its training."""
