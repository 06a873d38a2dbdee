"""Shared folders: the Xen transport of 9pfs and a server of 9P2000.L behind it.

`device` is the PV device, `transport` its rings, `server` answers messages, `session` keeps what a
client has open, `files` touches the host's files, `wire` turns bytes into values and back.
"""
