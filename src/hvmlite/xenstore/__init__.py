"""A xenstored in Python: tree, transactions, watches, quotas, wire protocol and its transports.

Single-threaded, driven by whoever calls it. Start at server.XenStore.
"""
