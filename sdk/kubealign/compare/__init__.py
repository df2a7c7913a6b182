"""Runs beside each other: settings that differ, numbers, reward distributions, texts of the same prompts."""
