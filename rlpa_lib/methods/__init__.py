"""How a dialogue becomes an answer: the rows of the tables, prompted, trained and controls."""
