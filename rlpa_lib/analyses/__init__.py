"""The analyses of section 5: ablations, preference conflict, long dialogues, reasoning, and users who do not cooperate."""
