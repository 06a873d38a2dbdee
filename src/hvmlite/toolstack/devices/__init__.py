"""PV devices as the toolstack sees them: what each is made from, and attaching and detaching.

`spec` has what all kinds share, `manager` the devices of one domain; each kind has a module of its
own that is loaded when such a device is asked for.
"""
