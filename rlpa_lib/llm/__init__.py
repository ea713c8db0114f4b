"""Language models behind endpoints in the roles of the paper: judges, slot converters and policies; and what keeps a judge honest."""
