"""Profiles, dialogues, what each party sees of them, and the protocols of policies, users and judges."""
