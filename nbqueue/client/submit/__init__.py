"""Turn a described call into jobs: new, reattached, retried, after another, or in this process.

May import lookup and what is below it, and calls.
"""
