"""Who the users are: readers of persona files, slots found in their texts, splits that share nobody."""
