"""Readers of the checkpoints that other systems write."""
