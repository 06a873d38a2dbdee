"""Grant tables: who may use which frame of a domain, and the mappings that come of it."""

from hvmlite.hypervisor.grant_table.backend import BackendMapping
from hvmlite.hypervisor.grant_table.entries import GrantError
from hvmlite.hypervisor.grant_table.lease import Lease
from hvmlite.hypervisor.grant_table.loan import Loan, Loans
from hvmlite.hypervisor.grant_table.ops import FAMILY
from hvmlite.hypervisor.grant_table.table import GrantTable

__all__ = ["FAMILY", "BackendMapping", "GrantError", "GrantTable", "Lease", "Loan", "Loans"]
