"""What is said and by whom: profiles, dialogues, the views of each party, and what policies, users and judges
are."""
