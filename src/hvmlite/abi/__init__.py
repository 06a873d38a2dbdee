"""The public Xen ABI as data: structs, constants, wire formats. Imports nothing of ours."""
