/*
 * Frames whose headers do not fit what is said to be left to do on them. See net.h.
 */
#include "net.h"

enum { ICMP = 1, TCP = 6, UDP = 17, HOP_BY_HOP = 0, FRAGMENT = 44 };
enum { IPV4 = 0x0800, IPV6 = 0x86dd, VLAN = 0x8100, ARP = 0x0806 };

static u8 *frame;

static void put16(u8 *at, u32 value)
{
    at[0] = (u8)(value >> 8);
    at[1] = (u8)value;
}

static u8 *begin(u32 type)
{
    frame = liar.out[0];
    memset(frame, 0, PAGE_SIZE);
    memset(frame, 0xff, 6);
    frame[6] = 2;
    put16(frame + 12, type);
    return frame + 14;
}

static u8 *ipv4(u8 protocol, u32 words)
{
    u8 *ip = begin(IPV4);

    ip[0] = (u8)(0x40 | words);
    put16(ip + 2, 1000);
    ip[9] = protocol;
    return ip + 4 * words;
}

static u8 *ipv6(u8 next)
{
    u8 *ip = begin(IPV6);

    ip[0] = 0x60;
    put16(ip + 4, 1000);
    ip[6] = next;
    return ip + 40;
}

static void tcp(u8 *at, u32 words)
{
    at[12] = (u8)(words << 4);
}

static void send(u32 size)
{
    slot(liar.out_refs[0], 0, NETTXF_csum_blank, size);
    tx_answered(1, NETIF_RSP_OKAY);
}

static void send_gso(u8 type, u16 segment, u32 size)
{
    slot(liar.out_refs[0], 0, NETTXF_csum_blank | NETTXF_extra_info, size);
    gso_extra(type, segment, 0);
    tx_answered(2, NETIF_RSP_OKAY);
}

static void checksums(void)
{
    u8 *at;

    begin(0);
    send(60);
    begin(ARP);
    send(60);
    for (u32 words = 0; words < 5; words++) {
        tcp(ipv4(TCP, words), 5);
        send(200);
    }
    ipv4(TCP, 15);
    send(14 + 20);
    tcp(ipv4(TCP, 5), 5);
    frame[14] = 0x65;
    send(200);
    ipv4(ICMP, 5);
    send(200);
    tcp(ipv4(TCP, 5), 5);
    put16(frame + 20, 0x2000);
    send(200);
    /* Headers cut short. */
    for (u32 size = 14; size < 14 + 20 + 20; size++) {
        tcp(ipv4(TCP, 5), 5);
        send(size);
    }
    for (u32 size = 14 + 20; size < 14 + 20 + 8; size++) {
        ipv4(UDP, 5);
        send(size);
    }
    tcp(ipv4(TCP, 5), 4);
    send(200);
    tcp(ipv4(TCP, 5), 15);
    send(90);
    for (u32 size = 14; size < 14 + 40 + 20; size++) {
        tcp(ipv6(TCP), 5);
        send(size);
    }
    /* A chain of headers that goes on to the end of the frame, and one that leads beyond it. */
    at = ipv6(HOP_BY_HOP);
    send(4000);
    at = ipv6(HOP_BY_HOP);
    at[0] = HOP_BY_HOP;
    at[1] = 255;
    send(3000);
    at = ipv6(FRAGMENT);
    tcp(at, 5);
    send(200);
    /* One tag more than is looked behind. */
    begin(VLAN);
    put16(frame + 16, VLAN);
    put16(frame + 20, VLAN);
    put16(frame + 24, IPV4);
    send(200);
}

static void segments(void)
{
    begin(ARP);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV4, 1000, 3000);
    ipv4(UDP, 5);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV4, 1000, 3000);
    ipv6(UDP);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV6, 1000, 3000);
    ipv4(ICMP, 5);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV4, 1, 3000);
    tcp(ipv4(TCP, 5), 5);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV4, 1, 3000);
    tcp(ipv4(TCP, 5), 5);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV4, 1000, 40);
    tcp(ipv6(TCP), 5);
    send_gso(XEN_NETIF_GSO_TYPE_TCPV6, 65535, 70);
}

static const struct lie unfinished[] = {
    {"checksums left out where there are none", NULL, checksums},
    {"GSO of what is no TCP, of too many segments", NULL, segments},
};

void net_tell_unfinished(void)
{
    frontend_tell(unfinished, ARRAY_SIZE(unfinished));
}
