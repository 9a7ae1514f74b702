"""What this process knows of one batch: one object, one writer.

May import spool.
"""
