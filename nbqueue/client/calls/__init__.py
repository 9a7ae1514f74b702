"""Describing a function and its arguments, so that another process can run and recognise them.

Imports nothing of client.
"""
