/*
 * entry.*, start.*, acpi.* and cpuid.*: what the guest finds before it asks anything.
 */
#include "answers.h"

extern u8 _end[];

void ask_boot(void)
{
    static const char *const seg[] = {"cs", "ds", "es", "ss", "fs", "gs", "tr", "ldt"};
    const struct entry_state *e = &entry_state;
    const struct hvm_start_info *s = start_info;
    const struct hvm_memmap_table_entry *map = (const void *)(ulong)s->memmap_paddr;
    const struct {
        const char *name;
        u32 value;
    } zeroes[] = {{"eax", e->eax}, {"ebx", e->ebx}, {"ecx", e->ecx}, {"edx", e->edx},
                  {"esi", e->esi}, {"edi", e->edi}, {"ebp", e->ebp}, {"esp", e->esp}},
      values[] = {{"eflags", e->eflags}, {"cr0", e->cr0}, {"cr3", e->cr3}, {"cr4", e->cr4},
                  {"cr2", e->cr2}, {"efer", e->efer}, {"dr6", e->dr6}, {"dr7", e->dr7}};

    for (unsigned int i = 0; i < ARRAY_SIZE(zeroes); i++)
        answer(name("entry.%s", zeroes[i].name), "%s", zero_or_not(zeroes[i].value));
    for (unsigned int i = 0; i < ARRAY_SIZE(values); i++)
        answer(name("entry.%s", values[i].name), "%08x", values[i].value);
    for (unsigned int i = 0; i < ARRAY_SIZE(seg); i++)
        answer(name("entry.sel.%s", seg[i]), "%08x", e->sel[i]);
    answer("entry.gdtr.limit", "%08x", e->gdtr_limit);
    answer("entry.gdtr.base", "%08x", e->gdtr_base);
    answer("entry.idtr.limit", "%08x", e->idtr_limit);
    answer("entry.idtr.base", "%08x", e->idtr_base);
    for (unsigned int i = 0; i < ARRAY_SIZE(seg); i++) {
        answer(name("entry.lar.%s", seg[i]), "%08x", e->lar[i]);
        answer(name("entry.lsl.%s", seg[i]), "%08x", e->lsl[i]);
    }

    answer("start.magic", "%08x", s->magic);
    answer("start.version", "%u", s->version);
    answer("start.flags", "%08x", s->flags);
    answer("start.nr_modules", "%u", s->nr_modules);
    answer("start.above_kernel", "%s", yes_or_no((ulong)s >= (ulong)_end));
    answer("start.modlist", "%s", zero_or_not(s->modlist_paddr));
    answer("start.cmdline", "%s", zero_or_not(s->cmdline_paddr));
    answer("start.cmdline.text", "%s", cmdline());
    answer("start.rsdp", "%s", zero_or_not(s->rsdp_paddr));
    answer("start.memmap_entries", "%u", s->memmap_entries);
    answer("start.reserved", "%08x", s->reserved);
    for (unsigned int i = 0; i < s->memmap_entries; i++) {
        answer(name("start.memmap.%u.type", i), "%u", map[i].type);
        answer(name("start.memmap.%u.addr", i), "%016llx", (unsigned long long)map[i].addr);
        answer(name("start.memmap.%u.size", i), "%016llx", (unsigned long long)map[i].size);
        answer(name("start.memmap.%u.reserved", i), "%08x", map[i].reserved);
    }
}

static u32 get32(const u8 *p)
{
    u32 v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static const u8 *pointer64(const u8 *p)
{
    return (const u8 *)((ulong)get32(p) | (ulong)get32(p + 4) << 32);
}

static const char *sum_of(const u8 *p, u32 size)
{
    u8 sum = 0;

    while (size--)
        sum += *p++;
    return sum ? "bad" : "ok";
}

/* Bytes as text, with a dot for what is none. */
static const char *text(const u8 *p, u32 size)
{
    static char buf[24];

    for (u32 i = 0; i < size; i++)
        buf[i] = p[i] >= ' ' && p[i] < 0x7f ? (char)p[i] : '.';
    buf[size] = '\0';
    return buf;
}

static void answer_table(const u8 *table)
{
    char sig[5] = {0};

    memcpy(sig, table, 4);
    answer(name("acpi.%s.len", sig), "%u", get32(table + 4));
    answer(name("acpi.%s.rev", sig), "%u", table[8]);
    answer(name("acpi.%s.sum", sig), "%s", sum_of(table, get32(table + 4)));
    answer(name("acpi.%s.oem", sig), "%s", text(table + 10, 14));
}

static void ask_fadt(const u8 *fadt)
{
    const u8 *facs = pointer64(fadt + 132), *dsdt = (const u8 *)(ulong)get32(fadt + 40);

    answer("acpi.fadt.smi_cmd", "%08x", get32(fadt + 48));
    answer("acpi.fadt.pm1a_evt", "%08x", get32(fadt + 56));
    answer("acpi.fadt.pm_tmr", "%08x", get32(fadt + 76));
    answer("acpi.fadt.pm1_evt_len", "%08x", fadt[88]);
    answer("acpi.fadt.pm1_cnt_len", "%08x", fadt[89]);
    answer("acpi.fadt.c3lat", "%08x", fadt[98] | fadt[99] << 8);
    answer("acpi.fadt.boot_arch", "%08x", fadt[109] | fadt[110] << 8);
    answer("acpi.fadt.flags", "%08x", get32(fadt + 112));
    answer("acpi.fadt.minor", "%08x", fadt[131]);
    answer("acpi.fadt.dsdt", "%s", zero_or_not(dsdt));
    answer("acpi.fadt.x_facs", "%s", zero_or_not(facs));
    answer("acpi.facs.sig", "%s", text(facs, 4));
    answer("acpi.0.dsdt", "%s", text(dsdt, 4));
    answer_table(dsdt);
}

void ask_acpi(void)
{
    const u8 *rsdp = (const u8 *)(ulong)start_info->rsdp_paddr;
    const u8 *rsdt = (const u8 *)(ulong)get32(rsdp + 16), *xsdt = pointer64(rsdp + 24);

    answer("acpi.rsdp.sig", "%s", text(rsdp, 8));
    answer("acpi.rsdp.sum20", "%s", sum_of(rsdp, 20));
    answer("acpi.rsdp.sum36", "%s", sum_of(rsdp, 36));
    answer("acpi.rsdp.rev", "%u", rsdp[15]);
    answer("acpi.rsdp.rsdt", "%s", zero_or_not(rsdt));
    answer("acpi.rsdp.xsdt", "%s", zero_or_not(xsdt));
    answer("acpi.rsdp.oem", "%s", text(rsdp + 9, 6));
    answer("acpi.rsdp.aligned16", "%s", yes_or_no(!((ulong)rsdp & 15)));
    answer_table(rsdt);
    answer_table(xsdt);
    for (u32 i = 0; 36 + 8 * i < get32(xsdt + 4); i++) {
        const u8 *table = pointer64(xsdt + 36 + 8 * i);

        answer(name("acpi.0.xsdt.%u", i), "%s", text(table, 4));
        answer_table(table);
        if (!memcmp(table, "FACP", 4))
            ask_fadt(table);
        if (memcmp(table, "APIC", 4))
            continue;
        answer("acpi.madt.lapic", "%08x", get32(table + 36));
        answer("acpi.madt.flags", "%08x", get32(table + 40));
        for (u32 at = 44, n = 0; at < get32(table + 4) && table[at + 1]; at += table[at + 1], n++)
            answer(name("acpi.madt.%u", n), "%02x%02x%02x%02x%02x%02x%02x%02x", table[at], table[at + 1],
                   table[at + 2], table[at + 3], table[at + 4], table[at + 5], table[at + 6], table[at + 7]);
    }
}

void ask_cpuid(void)
{
    for (u32 leaf = 0x40000000; leaf < 0x40000008; leaf++) {
        u32 subleaves = leaf >= 0x40000002 && leaf <= 0x40000005 && leaf != 0x40000004 ? 4 : 1;

        for (u32 sub = 0; sub < subleaves; sub++) {
            struct cpuid c = cpuid_count(leaf, sub);
            const u32 values[] = {c.eax, c.ebx, c.ecx, c.edx};

            for (unsigned int i = 0; i < 4; i++) {
                static const char *const reg[] = {"eax", "ebx", "ecx", "edx"};
                const char *question = name("cpuid.%08x.%u.%s", leaf, sub, reg[i]);

                /* Frequencies, scales and offsets are the machine's. */
                if ((leaf == 0x40000003 && (sub == 1 || i == 2 || (sub == 2 && i == 0))) ||
                    (leaf == 0x40000004 && i == 2))
                    answer(question, "%s", zero_or_not(values[i]));
                else
                    answer(question, "%08x", values[i]);
            }
        }
    }
}
