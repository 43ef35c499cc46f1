"""Prompts to a teacher, and its answers to filtered JSONL, with the cost under control."""
