"""Fetch from store or spool what is not in memory, and wait for what is not there yet.

May import session, state, spool.
"""
