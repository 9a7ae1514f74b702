"""One process and one server: connection, polling thread, local mode.

May import state and spool.
"""
