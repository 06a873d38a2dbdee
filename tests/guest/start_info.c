/*
 * start_info: struct hvm_start_info and what it points to.
 *
 * Purpose: magic, version, command line, RSDP address and the memory map are what Xen 4.17's
 * toolstack gives a domU.
 * Blind spots: modules (no guest of the harness is given one); a memory size that reaches the hole
 * below 4 GiB; the contents of the ACPI tables (acpi_tables).
 *
 * Options: --cmdline "hello world"
 */
#include "guest.h"

const char test_title[] = "Start info";

extern const u8 _end[];

static const struct hvm_memmap_table_entry *map;

static void check_region(u32 i, u64 addr, u64 size, u32 type)
{
    const struct hvm_memmap_table_entry *e = &map[i];

    if (e->addr != addr || (size && e->size != size) || e->type != type || e->reserved)
        failure("start.memmap.%u: 0x%llx+0x%llx type %u reserved 0x%x; want 0x%llx+0x%llx type %u", i,
                (unsigned long long)e->addr, (unsigned long long)e->size, e->type, e->reserved,
                (unsigned long long)addr, (unsigned long long)size, type);
}

void test_main(void)
{
    const struct hvm_start_info *s = start_info;

    check_hex("start.magic", s->magic, XEN_HVM_START_MAGIC_VALUE);
    check_signed("start.version", (long)s->version, 1);
    check_hex("start.flags", s->flags, 0);
    check_signed("start.nr_modules", (long)s->nr_modules, 0);
    check_hex("start.modlist", s->modlist_paddr, 0);
    check_hex("start.reserved", s->reserved, 0);
    check_true("start.above_kernel", (ulong)s >= (ulong)_end);
    check_hex("start.rsdp", s->rsdp_paddr, 0xfc008000);
    check_true("start.cmdline", s->cmdline_paddr);
    if (strlen(cmdline()) != 11 || memcmp(cmdline(), "hello world", 11))
        failure("start.cmdline: \"%s\"", cmdline());

    if (s->memmap_entries != 5) {
        failure("start.memmap_entries: got %u, want 5", s->memmap_entries);
        return;
    }
    map = (const void *)(ulong)s->memmap_paddr;
    /* RAM from 0 in one piece: a PVH guest has no hole below 1 MiB. */
    check_region(0, 0, 0, XEN_HVM_MEMMAP_TYPE_RAM);
    if (map[0].size & 0xfffff || map[0].size <= (ulong)_end)
        failure("start.memmap.0.size: 0x%llx", (unsigned long long)map[0].size);
    check_region(1, 0xfeff8000, 0x8000, XEN_HVM_MEMMAP_TYPE_RESERVED);
    check_region(2, 0xfc008000, 0x40, XEN_HVM_MEMMAP_TYPE_ACPI);
    check_region(3, 0xfc000000, 0x1000, XEN_HVM_MEMMAP_TYPE_ACPI);
    check_region(4, 0xfc001000, 0, XEN_HVM_MEMMAP_TYPE_ACPI);
    if (map[4].size & (PAGE_SIZE - 1) || map[4].addr + map[4].size > 0xfc008000)
        failure("start.memmap.4.size: 0x%llx", (unsigned long long)map[4].size);
    success();
}
