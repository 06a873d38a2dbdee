"""PV network: the backend of a guest's interface (`netback`), and what it can be attached to.

`frame` is what goes between the two, `endpoint` the interface of whatever carries frames on.
"""
