/*
 * xen_version: every XENVER_* command with good arguments.
 *
 * Purpose: the answers of Xen 4.17.7 to a PVH domU.
 * Blind spots: compile_info is free text and not looked at, capabilities only for 64-bit HVM; bad
 * pointers are in wild_pointers.
 */
#include "guest.h"

const char test_title[] = "XENVER_*";

/* Bits 0, 2, 8, 9, 13 and 16: what 4.17 offers a PVH domU. */
#define FEATURES 0x12305

static void check_string(const char *what, const char *got, const char *want)
{
    size_t n = strlen(want) + 1;

    if (memcmp(got, want, n))
        failure("%s: \"%s\", want \"%s\"", what, got, want);
}

static bool contains(const char *text, const char *word)
{
    for (; *text; text++)
        if (!strncmp(text, word, strlen(word)))
            return true;
    return false;
}

static void test_features(void)
{
    xen_feature_info_t info = {.submap_idx = 0};

    check_rc("version.features.0", xen_version(XENVER_get_features, &info), 0);
    check_hex("features", info.submap, FEATURES);
    for (u32 i = 1; i < 4; i++) {
        info.submap_idx = i;
        check_rc("version.features.1 to 3", xen_version(XENVER_get_features, &info), -XEN_EINVAL);
    }
    info.submap_idx = ~0u;
    check_rc("version.features.max", xen_version(XENVER_get_features, &info), -XEN_EINVAL);
}

void test_main(void)
{
    static struct {
        xen_extraversion_t extra;
        xen_compile_info_t compile;
        xen_capabilities_info_t capabilities;
        xen_changeset_info_t changeset;
        xen_platform_parameters_t platform;
        xen_domain_handle_t handle;
        xen_commandline_t commandline;
        struct {
            xen_build_id_t id;
            u8 room[60];
        } build;
    } v;

    call("XENVER_version");
    check_hex("hc.nr.17.zeros", (ulong)xen_version(XENVER_version, NULL), 0x00040011);

    call("XENVER_extraversion");
    check_rc("version.extraversion", xen_version(XENVER_extraversion, v.extra), 0);
    check_string("version.extraversion.text", v.extra, ".7");

    call("XENVER_compile_info");
    check_rc("version.compile_info", xen_version(XENVER_compile_info, &v.compile), 0);
    call("XENVER_capabilities");
    check_rc("version.capabilities", xen_version(XENVER_capabilities, v.capabilities), 0);
    if (!contains(v.capabilities, "hvm-3.0-x86_64 "))
        failure("capabilities: \"%s\"", v.capabilities);
    call("XENVER_changeset");
    check_rc("version.changeset", xen_version(XENVER_changeset, v.changeset), 0);

    call("XENVER_platform_parameters");
    check_rc("version.platform_parameters", xen_version(XENVER_platform_parameters, &v.platform), 0);
#ifdef __x86_64__
    check_hex("version.platform_parameters.virt_start", v.platform.virt_start, 0xffff800000000000ull);
#endif
    call("XENVER_get_features");
    test_features();
    call("XENVER_pagesize");
    check_signed("pagesize", xen_version(XENVER_pagesize, NULL), PAGE_SIZE);
    call("XENVER_guest_handle");
    check_rc("guest_handle", xen_version(XENVER_guest_handle, v.handle), 0);

    call("XENVER_commandline");
    check_rc("version.commandline", xen_version(XENVER_commandline, v.commandline), 0);
    check_string("command line", (char *)v.commandline, "<denied>");

    call("XENVER_build_id");
    v.build.id.len = 60;
    check_rc("version.build_id.60", xen_version(XENVER_build_id, &v.build), -XEN_EPERM);
    v.build.id.len = 4;
    check_rc("version.build_id.4", xen_version(XENVER_build_id, &v.build), -XEN_EPERM);

    call(NULL);
    for (unsigned int op = 12; op < 20; op++)
        if (xen_version(op, &v) != -XEN_ENOSYS)
            failure("version.op.%u.valid: not -ENOSYS", op);
    success();
}
