"""How good users and judges are (appendices G and H): annotation, test sets, agreement, tables 6 to 10."""
