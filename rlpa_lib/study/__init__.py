"""How good users and judges are (appendices G and H): annotation by people, test sets, agreement, and tables
6 to 10."""
