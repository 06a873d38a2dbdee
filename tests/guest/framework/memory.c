/*
 * Page allocator, holes in the guest-physical map and the window of 4 KiB mappings.
 */
#include "guest.h"
#include "layout.h"

extern u8 _end[];

/* Holes come from here upwards: above the RAM of a small guest, below everything that PVH places. */
#define HOLE_FIRST 0xd0000000ul
#define HOLE_LAST 0xe0000000ul

static ulong free_page, free_end;
static ulong free_hole = HOLE_FIRST >> PAGE_SHIFT;

/* What XENMEM_memory_map gives, where start_info has no map (Xen's own PVH dom0). */
static struct hvm_memmap_table_entry asked_map[32];
static u32 asked_entries;

static void ask_map(void)
{
    static struct {
        u64 addr, size;
        u32 type;
    } __attribute__((packed)) e820[ARRAY_SIZE(asked_map)];
    struct xen_memory_map op = {.nr_entries = ARRAY_SIZE(e820)};

    set_xen_guest_handle(op.buffer, e820);
    if (memory_op(XENMEM_memory_map, &op))
        error("no memory map");
    for (; asked_entries < op.nr_entries; asked_entries++) {
        asked_map[asked_entries].addr = e820[asked_entries].addr;
        asked_map[asked_entries].size = e820[asked_entries].size;
        asked_map[asked_entries].type = e820[asked_entries].type;
    }
}

const struct hvm_memmap_table_entry *memmap(u32 *entries)
{
    if (start_info->memmap_entries) {
        *entries = start_info->memmap_entries;
        return (const struct hvm_memmap_table_entry *)(ulong)start_info->memmap_paddr;
    }
    if (!asked_entries)
        ask_map();
    *entries = asked_entries;
    return asked_map;
}

const char *cmdline(void)
{
    return start_info->cmdline_paddr ? (const char *)(ulong)start_info->cmdline_paddr : "";
}

ulong cmdline_number(const char *name, ulong otherwise)
{
    size_t len = strlen(name);

    for (const char *p = cmdline(); *p; p++) {
        ulong value = 0;

        if ((p != cmdline() && p[-1] != ' ') || strncmp(p, name, len) || p[len] != '=')
            continue;
        for (p += len + 1; *p >= '0' && *p <= '9'; p++)
            value = value * 10 + (ulong)(*p - '0');
        return value;
    }
    return otherwise;
}

/* Moves `from` past [start, start + size) if that lies in the region being carved. */
static ulong above(ulong from, ulong end, u64 start, u64 size)
{
    if (!size || start >= end || start + size <= from)
        return from;
    return (ulong)(start + size);
}

static void find_free_memory(void)
{
    u32 entries;
    const struct hvm_memmap_table_entry *map = memmap(&entries);
    const struct hvm_modlist_entry *mods = (const void *)(ulong)start_info->modlist_paddr;

    for (u32 i = 0; i < entries; i++) {
        u64 start = map[i].addr, end = map[i].addr + map[i].size;

        if (map[i].type == XEN_HVM_MEMMAP_TYPE_RAM && start <= (ulong)_end && end > (ulong)_end) {
            free_page = (ulong)_end;
            free_end = end > HOLE_FIRST ? HOLE_FIRST : (ulong)end;
        }
    }
    if (!free_end)
        error("no RAM region in the memory map holds the guest");
    free_page = above(free_page, free_end, (ulong)start_info, sizeof(*start_info));
    free_page = above(free_page, free_end, start_info->memmap_paddr,
                      start_info->memmap_entries * sizeof(*map));
    free_page = above(free_page, free_end, start_info->cmdline_paddr, strlen(cmdline()) + 1);
    free_page = above(free_page, free_end, start_info->modlist_paddr,
                      start_info->nr_modules * sizeof(*mods));
    for (u32 i = 0; i < start_info->nr_modules; i++)
        free_page = above(free_page, free_end, mods[i].paddr, mods[i].size);
    free_page = (free_page + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

void *alloc_pages(unsigned int count)
{
    void *page;

    if (!free_end)
        find_free_memory();
    if (free_end - free_page < count * PAGE_SIZE)
        error("out of memory");
    page = (void *)free_page;
    free_page += count * PAGE_SIZE;
    memset(page, 0, count * PAGE_SIZE);
    return page;
}

ulong alloc_hole(unsigned int count)
{
    u32 entries;
    const struct hvm_memmap_table_entry *map = memmap(&entries);
    ulong gfn = free_hole;

    for (u32 i = 0; i < entries; i++)
        if (map[i].addr < HOLE_LAST && map[i].addr + map[i].size > HOLE_FIRST)
            error("the memory map covers 0x%lx, where this framework takes its holes", HOLE_FIRST);
    free_hole += count;
    if (free_hole > HOLE_LAST >> PAGE_SHIFT)
        error("out of holes");
    return gfn;
}

#if HAVE_PAGING
#if CONFIG_PAGING >= 3
extern volatile u64 low_table[], window_table[];
#else
extern volatile u32 low_table[], window_table[];
#endif

void null_unmap(void)
{
    low_table[0] = 0;
    invlpg(NULL);
}

void *window_map(unsigned int slot, u64 pa, ulong flags)
{
    void *va = (void *)(WINDOW_VA + slot * PAGE_SIZE);

    if (slot >= WINDOW_PAGES)
        error("window slot %u does not exist", slot);
    window_table[slot] = flags ? pa | flags : 0;
    invlpg(va);
    return va;
}
#endif
