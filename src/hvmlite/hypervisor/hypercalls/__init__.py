"""The hypercalls of a PVH domU, one module per family, and the table that joins them."""
