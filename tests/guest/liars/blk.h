/*
 * A frontend of disks that can lie (blk_*.c). Each sector of its disks begins with its number, but
 * for the last eight, which are ours to write.
 */
#ifndef LIARS_BLK_H
#define LIARS_BLK_H

#include "frontend.h"

#include <xen/io/blkif.h>

#define SECTORS 2048u
#define OURS (SECTORS - 8)
#define LAST 7u
#define MARK 0x5a
#define DATA_PAGES 4u
#define RING_PAGES 4u

extern u8 *ring_pages, *data[DATA_PAGES];
extern struct blkif_request_segment *indirect;
extern grant_ref_t ring_refs[RING_PAGES], refs[DATA_PAGES], indirect_ref;
extern grant_ref_t ring_readonly, ring_elsewhere, data_readonly, data_elsewhere;
extern evtchn_port_t port, closed_port;
extern struct ring ring;
extern bool persistent;

extern const struct frontend blk_frontend;

void blk_init(void);
void blk_nodes(void);
/* Reads two sectors into the middle of a page, and writes and reads what is ours. */
void blk_check(void);

/* Each puts a request, of whole pages, which is for the caller to spoil before it is sent. */
struct blkif_request *request(u8 operation, u8 count, u64 sector);
struct blkif_request_indirect *indirect_request(u8 operation, u16 count, u64 sector);
struct blkif_request_discard *discard(u8 flag, u64 sector, u64 sectors);
/* Sends the one request that was put: it gets that answer and changes no data. */
void answered(u8 operation, int status);

void fill(int byte);
bool is_filled(const u8 *from, u32 size, int byte);
bool holds_sectors(const u8 *page, u64 sector, u32 count);

/* Lies in the nodes and on the ring, each of which has to end in the state Closing. */
void blk_tell_lies(void);
/* What is answered with an error, and what only hurts the liar. */
void blk_tell_answers(void);
/* Lies of a second vCPU. */
void blk_tell_races(void);

#endif
