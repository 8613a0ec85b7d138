"""Probes on real embeddings."""
