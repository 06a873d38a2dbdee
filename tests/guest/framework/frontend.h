/*
 * A PV device's frontend that lies (frontend.c): its states, grants and ring, and what is checked
 * after each lie. A guest has the lies of one kind of device in tables.
 *
 * Facts: xen/io/xenbus.h, xen/io/ring.h.
 */
#ifndef GUEST_FRONTEND_H
#define GUEST_FRONTEND_H

#include "xenstore.h"

/* A grant reference that there is none of. */
#define BAD_REF 0xdeadu

struct frontend {
    /* As in xenstore's paths. */
    const char *kind;
    /* The first device's number, and how far it is to the next one. */
    u32 devid, step;
    /* Pages as new, and the nodes of an honest driver. */
    void (*nodes)(void);
    /* The device is connected: does honest work on it, and on those that look on. */
    void (*check)(void);
};

struct lie {
    const char *what;
    /* What the host says of it; NULL: the backend must not mind. */
    const char *reason;
    void (*tell)(void);
};

/* Once, before all else. */
void frontend_init(void);
/* Takes up the first device of a kind; ends the guest if there is none. */
void frontend_begin(const struct frontend *what);
/* Devices that are connected now go on by themselves, and look on what the others do. */
void frontend_look_on(void);
/* The next device of this kind: the host says only so much about one. */
void frontend_next(void);
void frontend_state(u32 state);
void frontend_set(const char *node, u32 value);
void frontend_text(const char *node, const char *text);
void frontend_remove(const char *node);
/* A number of the backend's. */
u32 frontend_offer(const char *node);
/* One function of a table of lies. */
#define TELL(name, ...)         \
    static void name(void)      \
    {                           \
        __VA_ARGS__;            \
    }

/* Writes honest nodes, and is connected. */
void frontend_connect(void);
/* Connected or not: says goodbye; a new driver may begin. */
void frontend_leave(void);

/* Lies in the nodes, told before the device is connected. Each has to end in the state Closing. */
void frontend_tell_nodes(const struct lie *lies, u32 count);
/* Lies told to a connected device; after each the device is connected anew and checked. */
void frontend_tell(const struct lie *lies, u32 count);
/* Lies about states, which are the same for all devices. */
void frontend_tell_states(void);
/* A connected driver without any nodes: it has no way to say goodbye, so this is the last lie. */
void frontend_vanish(void);
/* The backend has cut us off; leaves. */
void frontend_caught(const char *what, const char *reason);
/* Whether the backend is as it was when it was connected. */
bool frontend_served(void);

/*
 * Random words into the pages of a connected device, a round each: `shake` sends the events. What
 * the backend makes of it is its business, but a new driver is served again.
 */
void frontend_scribble(void *const *pages, u32 count, void (*shake)(void));

grant_ref_t grant_page(const void *page);
grant_ref_t grant_readonly(const void *page);
/* To another domain than the backend's. */
grant_ref_t grant_elsewhere(const void *page);
void grant_revoke(grant_ref_t ref);
/* A grant of a page that is memory no more. */
grant_ref_t grant_gone(void);
void balloon_out(const void *page);
evtchn_port_t new_port(void);
/* Text that is as long as a node may be. */
const char *long_text(void);

/* The frontend's side of a ring (DEFINE_RING_TYPES), over pages that follow each other. */
struct ring {
    u32 *shared;
    u32 entry, size;
    evtchn_port_t port;
    u32 produced, consumed;
};
enum { REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT };
void ring_init(struct ring *ring, void *pages, u32 count, u32 entry, evtchn_port_t port);
/* The next request's entry, all zero. */
void *ring_put(struct ring *ring);
void ring_push(struct ring *ring);
/* Waits for the next response; NULL if none comes. */
void *ring_answer(struct ring *ring);
/* The next response if it is there, else NULL. */
void *ring_take(struct ring *ring);
void ring_lie(struct ring *ring, u32 produced);

#endif
