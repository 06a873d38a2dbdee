/*
 * Grant table, version 1. Facts: xen/grant_table.h.
 */
#include "guest.h"

static struct grant_entry_v1 *table;

struct grant_entry_v1 *grant_table_map(unsigned int frames)
{
    ulong gfn = alloc_hole(frames);

    for (unsigned int i = 0; i < frames; i++) {
        int rc = add_to_physmap(XENMAPSPACE_grant_table, i, gfn + i);

        if (rc)
            error("XENMAPSPACE_grant_table %u: %d", i, rc);
    }
    table = (struct grant_entry_v1 *)(gfn << PAGE_SHIFT);
    return table;
}

void grant_access(grant_ref_t ref, domid_t domid, ulong gfn, bool readonly)
{
    table[ref].domid = domid;
    table[ref].frame = (u32)gfn;
    barrier();
    /* The flags make the entry valid, so they go last. */
    WRITE_ONCE(table[ref].flags, (u16)(GTF_permit_access | (readonly ? GTF_readonly : 0)));
}
