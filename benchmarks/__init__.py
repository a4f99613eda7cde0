"""Measurements of finished work, one question per file."""
