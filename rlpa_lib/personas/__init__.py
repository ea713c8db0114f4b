"""Who the users are: readers of persona files, the slots found in their texts, and splits that share nobody."""
