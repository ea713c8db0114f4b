"""What speaks and judges: users, judges and policies behind servers or in process, made from the settings."""
