/*
 * A frontend of network interfaces that can lie, and one on the same link that does not (net_*.c).
 */
#ifndef LIARS_NET_H
#define LIARS_NET_H

#include "frontend.h"

#include <xen/io/netif.h>

#define OUT_PAGES 16u
#define IN_PAGES 32u
#define LONGEST 65535u

enum { TX, RX, CTRL, RINGS };

struct nic {
    struct ring rings[RINGS];
    u8 *ring_pages[RINGS], *out[OUT_PAGES], *in[IN_PAGES];
    grant_ref_t ring_refs[RINGS], out_refs[OUT_PAGES], in_refs[IN_PAGES];
    evtchn_port_t ports[RINGS];
    u16 next_id;
};
extern struct nic liar, peer;
extern const struct frontend net_frontend;
/* An interface on no link: its frames are finished by the backend, and go to the test. */
extern const struct frontend net_outside;
/* Grants of the liar's pages that are no good for what they are given for. */
extern grant_ref_t ring_readonly, ring_elsewhere, out_elsewhere, in_readonly, in_elsewhere;
extern evtchn_port_t closed_port;

/* The peer is connected, and looks on, from here. */
void net_init(void);
/* Without a peer: the one that could lie is the first interface. */
void net_init_alone(void);
void net_nodes(void);
/* A frame each way between liar and peer, of one page. */
void net_check(void);

/* One slot for the transmit ring; the identifier counts up. */
struct netif_tx_request *slot(grant_ref_t ref, u32 offset, u32 flags, u32 size);
struct netif_extra_info *extra(u8 type, u8 flags);
struct netif_extra_info *gso_extra(u8 type, u16 size, u8 flags);
void tx_push(void);
/* So many slots that were put get that answer; those of extra information, NETIF_RSP_NULL. */
void tx_answered(u32 count, int status);
/* An honest frame of so many bytes in the liar's pages; returns how many slots it takes. */
u32 put_frame(u32 size);
/* Waits until this frame comes, among others that may. */
bool receive(struct nic *nic, u32 size);
void post(struct nic *nic, u16 id, grant_ref_t ref);
void rx_push(struct nic *nic);
/* The peer sends one frame. */
void peer_sends(u32 size);
/* A message on the control ring gets that status. */
void ctrl_answered(u16 type, u32 a, u32 b, u32 c, u32 status);

/* Lies in the nodes and on the rings, each of which has to end in the state Closing. */
void net_tell_lies(void);
/* What is answered with an error, and what only hurts the liar. */
void net_tell_answers(void);
/* Frames that cannot be finished, out of net_outside. */
void net_tell_unfinished(void);
/* Lies of a second vCPU. */
void net_tell_races(void);

#endif
