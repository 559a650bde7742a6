"""Audited models: found, fingerprinted, loaded, sampled."""
