"""A function, its arguments, and how both are recognised again in another process.

Imports nothing of client.
"""
