"""Retrieval: the references nearest to each generation, exactly."""
