"""An append-only local copy of sealed records: one file a batch and session.

Imports nothing of client.
"""
