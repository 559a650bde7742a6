"""Inputs of an audit: prompts, reference images and mattes."""
