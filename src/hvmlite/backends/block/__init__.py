"""The PV block device's backend: requests of one or more rings, carried out on an image.

`backend` and `queue` speak blkif, `grants` keeps pages mapped, `image` is what all that holds data
has in common, with one module for each kind of it.
"""
