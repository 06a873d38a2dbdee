/*
 * acpi_tables: the ACPI tables that Xen's toolstack builds for a PVH domU.
 *
 * Purpose: RSDP, RSDT, XSDT, FADT, FACS, DSDT and MADT are linked, sum to zero and hold the values
 * of Xen 4.17.
 * Blind spots: no AML is interpreted; the contents of the DSDT beyond header and sum are not read.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "ACPI tables";

struct header {
    char signature[4];
    u32 length;
    u8 revision, checksum;
    char oem_id[6], oem_table_id[8];
    u32 oem_revision, creator_id, creator_revision;
} __attribute__((packed));

static const u8 *bytes(u64 pa)
{
    return (const u8 *)(ulong)pa;
}

static u32 get32(const void *table, unsigned int offset)
{
    u32 v;

    memcpy(&v, (const u8 *)table + offset, sizeof(v));
    return v;
}

static u64 get64(const void *table, unsigned int offset)
{
    return get32(table, offset) | ((u64)get32(table, offset + 4) << 32);
}

static u8 sum(const void *data, size_t n)
{
    u8 total = 0;

    for (size_t i = 0; i < n; i++)
        total += ((const u8 *)data)[i];
    return total;
}

static const struct header *table(u64 pa, const char *signature)
{
    const struct header *t = (const struct header *)bytes(pa);

    if (memcmp(t->signature, signature, 4))
        error("no %s at 0x%llx", signature, (unsigned long long)pa);
    if (t->length < sizeof(*t) || t->length > 0x10000)
        error("%s: length 0x%x", signature, t->length);
    if (sum(t, t->length))
        failure("acpi.%s.sum: bad", signature);
    if (memcmp(t->oem_id, "Xen\0\0\0", 6) || memcmp(t->oem_table_id, "HVM\0\0\0\0\0", 8))
        failure("acpi.%s.oem: not \"Xen\", \"HVM\"", signature);
    return t;
}

static void check_fadt(const struct header *fadt)
{
    const u8 *facs, *b = (const u8 *)fadt;

    check_signed("acpi.FACP.rev", fadt->revision, 5);
    check_hex("acpi.FACP.len", fadt->length, 268);
    check_true("acpi.fadt.dsdt", get32(fadt, 40));
    check_hex("acpi.fadt.smi_cmd", get32(fadt, 48), 0);
    check_hex("acpi.fadt.pm1a_evt", get32(fadt, 56), 0xb000);
    check_hex("acpi.fadt.pm1_evt_len", b[88], 4);
    check_hex("acpi.fadt.pm1_cnt_len", b[89], 2);
    check_hex("acpi.fadt.c3lat", b[98] | b[99] << 8, 0xfff);
    check_hex("acpi.fadt.iapc_boot_arch: no VGA, no RTC", (b[109] | b[110] << 8) & 0x24, 0x24);
    check_hex("acpi.fadt.flags", get32(fadt, 112), 0x8175);
    check_hex("acpi.fadt.minor", b[131], 0);
    check_true("acpi.fadt.x_facs", get64(fadt, 132));

    facs = bytes(get64(fadt, 132));
    if (memcmp(facs, "FACS", 4))
        failure("acpi.facs.sig");
    check_hex("acpi.facs.length", get32(facs, 4), 64);
    table(get32(fadt, 40), "DSDT");
}

static void check_madt(const struct header *madt)
{
    unsigned int vcpus = vcpu_count();
    const u8 *entry = (const u8 *)madt + 44;

    check_signed("acpi.APIC.len", madt->length, 44 + 8 * (long)vcpus);
    check_signed("acpi.APIC.rev", madt->revision, 2);
    check_hex("acpi.madt.lapic", get32(madt, 36), 0xfee00000);
    check_hex("acpi.madt.flags", get32(madt, 40), 1);
    if (madt->length != 44 + 8 * vcpus)
        return;
    for (unsigned int i = 0; i < vcpus; i++, entry += 8) {
        const u8 want[8] = {0, 8, (u8)i, (u8)(2 * i), 1};

        if (memcmp(entry, want, sizeof(want)))
            failure("acpi.madt.%u: 0x%08x%08x", i, get32(entry, 4), get32(entry, 0));
    }
}

void test_main(void)
{
    const u8 *rsdp = bytes(start_info->rsdp_paddr);
    const struct header *rsdt, *xsdt;

    if (!start_info->rsdp_paddr)
        skip("no RSDP");
    if (memcmp(rsdp, "RSD PTR ", 8))
        error("no RSDP at 0x%llx", (unsigned long long)start_info->rsdp_paddr);
    check_hex("acpi.rsdp.aligned16", start_info->rsdp_paddr & 15, 0);
    check_hex("acpi.rsdp.sum20", sum(rsdp, 20), 0);
    check_hex("acpi.rsdp.sum36", sum(rsdp, 36), 0);
    check_hex("acpi.rsdp.rev", rsdp[15], 2);
    if (memcmp(rsdp + 9, "Xen\0\0\0", 6))
        failure("acpi.rsdp.oem");
    check_true("acpi.rsdp.rsdt", get32(rsdp, 16));
    check_true("acpi.rsdp.xsdt", get64(rsdp, 24));

    rsdt = table(get32(rsdp, 16), "RSDT");
    xsdt = table(get64(rsdp, 24), "XSDT");
    check_signed("acpi.RSDT.len", rsdt->length, 36 + 2 * 4);
    check_signed("acpi.XSDT.len", xsdt->length, 36 + 2 * 8);
    check_fadt(table(get64(xsdt, 36), "FACP"));
    check_madt(table(get64(xsdt, 44), "APIC"));
    /* For readers of ACPI 1.0 Xen keeps a shorter FADT beside the one in the XSDT. */
    check_hex("acpi.rsdt.0.len", table(get32(rsdt, 36), "FACP")->length, 116);
    check_hex("acpi.rsdt.1", get32(rsdt, 40), (u32)get64(xsdt, 44));
    success();
}
